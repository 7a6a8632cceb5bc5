"""HTTP errors in the JSON format of OpenAI's API."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ...errors import BorealisError, Busy, EngineDied, InvalidInput

CLIENT_CLOSED_REQUEST = 499
"""Status in the log and the metrics for a client that disconnected before the response; never sent."""


class ClientDisconnected(Exception):
    """The client closed the connection before its request was answered."""


class ErrorResponse(Exception):
    """An HTTP error. `param` names the field of the request that is wrong; `code` is for programs."""

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
        error = {"message": self.message, "type": _error_type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def invalid_field(param: str, message: str, code: str | None = None) -> ErrorResponse:
    """The error (400) for an invalid field of the request."""
    return ErrorResponse(400, f"{param}: {message}" if param else message, param=param or None, code=code)


def error_response_of(error: BorealisError) -> ErrorResponse:
    """The HTTP error for an exception of this package."""
    if isinstance(error, InvalidInput):
        return ErrorResponse(400, str(error))
    if isinstance(error, Busy):
        return ErrorResponse(429, str(error), code="busy", headers={"retry-after": str(max(1, error.retry_after))})
    if isinstance(error, EngineDied):
        return ErrorResponse(503, str(error), code="engine_died", headers={"retry-after": "1"})
    return ErrorResponse(500, str(error))


def _error_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
