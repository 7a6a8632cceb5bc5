"""Turns errors of the Hub and huggingface_hub into one line with advice, without access tokens."""

import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import BorealisError, InvalidInput
from ..file_access import quote
from .retry import TRANSIENT_STATUSES, TransientError, retry_after

WEB = "https://huggingface.co/"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}")
QUERY = re.compile(r"(https?://[^\s?]+)\?[^\s:]+")

T = TypeVar("T")


def ask(call: Callable[[], T], repo_id: str, revision: str | None = None, *, kept: str = "") -> T:
    """Calls huggingface_hub, and turns its exceptions into TransientError, or InvalidInput with the reason.

    `kept` is added to the advice to try again, and names the data that a failed attempt leaves for the next.
    """
    try:
        return call()
    except BorealisError:  # raised by a progress callback, to stop
        raise
    except Exception as error:  # exception classes change with the HTTP client between versions of huggingface_hub
        status = status_of(error)
        if status in TRANSIENT_STATUSES:
            wait = retry_after(_response(error).headers)
            raise TransientError(f"the Hub answered {status}", wait, f"try again later{kept}") from None
        if status is None and isinstance(error, client_error()):
            name = type(error).__name__
            if name.startswith("Connect"):
                raise TransientError(
                    f"the Hub cannot be reached ({name})", None, "is there a network connection?"
                ) from None
            raise TransientError(f"the connection to the Hub broke ({name})", None, f"try again later{kept}") from None
        raise InvalidInput(explain(error, repo_id, revision, kept)) from None


def client_error() -> type[Exception]:
    """The HTTP client's base exception: HTTPError of httpx in huggingface_hub 1, of httpx2 in 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")  # type: ignore


def explain(error: Exception, repo_id: str, revision: str | None, kept: str) -> str:
    """Returns one line with the reason and advice. An unknown exception's own text is used, redacted."""
    from huggingface_hub import constants, errors, get_token

    page = WEB + repo_id
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"{repo_id}: accept the licence at {page} first, then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id}: has no revision {quote(revision or 'main')}; see {page}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return (
            f"{repo_id}: no such folder here, and no such model on the Hub, or you may not see it: check the name, "
            f"accept its licence at {page} if it asks for that, and log in with `hf auth login`"
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        if not kept:
            return f"{repo_id}: no such folder here, and HF_HUB_OFFLINE is set, so nothing can be read from the Hub"
        return f"{repo_id}: no such folder here, not completely in the Hub's local cache, and HF_HUB_OFFLINE is set"
    if status is not None:
        return f"{repo_id}: the Hub answered {status}; try again later{kept}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo_id}: no such folder here, and the Hub cannot be reached; is there a network connection?"
    text = redact(" ".join(str(error).replace(get_token() or "hf_…", "hf_…").split()))[:200]
    return f"{repo_id}: the download failed ({type(error).__name__}: {text}); try again{kept}"


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status behind an exception of huggingface_hub, or None."""
    return getattr(_response(error), "status_code", None)


def _response(error: Exception) -> Any:
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None)


def redact(text: str) -> str:
    """Removes access tokens and the query strings of URLs, whose signatures give access to a file."""
    return TOKEN.sub("hf_…", QUERY.sub(r"\1?…", text))


class _Redacted(logging.Filter):
    """Redacts huggingface_hub's warnings, which contain signed URLs."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


REDACTED = _Redacted()
