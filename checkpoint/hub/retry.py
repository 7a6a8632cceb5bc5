"""Retries requests to the Hub a limited number of times, with exponential backoff or the server's Retry-After."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar

from ...errors import STOPPED, BorealisError, Cancelled

ATTEMPTS = 6
"""Attempts per request."""

BACKOFF = 1.0
"""Seconds before the second attempt; the pause doubles with each further attempt, unless the server names one."""

MAX_WAIT = 330
"""The longest wait in seconds that a server may ask for; the Hub's rate limit has windows of five minutes."""

TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
"""HTTP statuses after which a retry may succeed."""

T = TypeVar("T")
log = logging.getLogger("borealis_gguf")


class TransientError(Exception):
    """An error that a retry may fix. `wait` is the server's Retry-After, `advice` is shown if all attempts fail."""

    def __init__(self, reason: str, wait: float | None = None, advice: str = "try again later") -> None:
        super().__init__(reason)
        self.wait = wait
        self.advice = advice


def with_retries(
    label: str, attempt: Callable[[], T], stop: threading.Event | None = None, attempts: int = ATTEMPTS
) -> T:
    """Calls `attempt` until it does not raise TransientError. Raises BorealisError after the last attempt."""
    stop = stop or threading.Event()
    for failures in range(1, attempts + 1):
        try:
            return attempt()
        except TransientError as error:
            if failures == attempts:
                raise BorealisError(f"{label}: {error}, {attempts} times in a row; {error.advice}") from None
            wait = BACKOFF * 2 ** (failures - 1) if error.wait is None else error.wait
            if wait > MAX_WAIT:
                raise BorealisError(f"{label}: {error}, and asks to wait {wait:.0f} s; try again then") from None
            if wait >= 5:
                log.warning("%s: %s; trying again in %.0f s", label, error, wait)
        if stop.wait(wait):
            raise Cancelled(STOPPED)
    raise AssertionError("the last attempt returns or raises")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds to wait, from Retry-After or the Hub's RateLimit header, or None."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        window = re.search(r"\bt=(\d{1,9})\b", headers.get("RateLimit", ""))
        return float(window[1]) if window else None
