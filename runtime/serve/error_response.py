"""Every request that is not answered is told why, in the shape OpenAI's clients know."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ...errors import BorealisError, Busy, EngineDied, InvalidInput

GONE = 499
"""Status, for the log and the metrics alone, of a request whose client left before it was answered."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Refusal(Exception):
    """An HTTP error. `param` names the field it is about; `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def wrong(param: str, message: str, code: str | None = None) -> Refusal:
    """A field of the request that cannot be used."""
    return Refusal(400, f"{param}: {message}" if param else message, param=param or None, code=code)


def refusal_of(error: BorealisError) -> Refusal:
    """What the library could not do, as an HTTP error."""
    if isinstance(error, InvalidInput):
        return Refusal(400, str(error))
    if isinstance(error, Busy):
        return Refusal(429, str(error), code="busy", headers={"retry-after": str(max(1, error.retry_after))})
    if isinstance(error, EngineDied):
        return Refusal(503, str(error), code="engine_died", headers={"retry-after": "1"})
    return Refusal(500, str(error))


def _kind(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
