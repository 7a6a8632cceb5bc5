"""The outermost ASGI layer: checks Host, Origin and API key, adds security headers, turns exceptions into errors.

A model on this machine must not be usable by any web page its owner visits. A page cannot forge the Host header, which
shows DNS rebinding (a foreign name that resolves to 127.0.0.1), nor the Origin header, which shows cross-site requests.
"""

import hmac
import ipaddress
import logging
import re
import secrets
import socket
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import BorealisError
from .error_response import CLIENT_CLOSED_REQUEST, ClientDisconnected, ErrorResponse
from .http_response import HTTPResponse
from .service_state import ServerSettings, Service

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+)(?::\d{1,5})?")
NEEDS_KEY = ("/v1/", "/metrics")
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Headers of every response that does not set them itself."""

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-max-age": "600",
    "access-control-allow-private-network": "true",
}


class AccessGuard:
    """Passes allowed requests to `app`, and turns exceptions into error responses."""

    def __init__(self, app: ASGIApp, service: Service, routes: Mapping[str, str]) -> None:
        """`routes`: the name in the metrics of each path that exists."""
        self.app, self.service, self.routes = app, service, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        response = HTTPResponse(scope, receive, send, self._headers(scope))
        started = time.monotonic()
        try:
            await self._answer(scope, response)
        finally:
            self.service.release_body_bytes(scope)
            self._count(scope, response.status or CLIENT_CLOSED_REQUEST, time.monotonic() - started)

    async def _answer(self, scope: Scope, response: HTTPResponse) -> None:
        try:
            settings, headers = self.service.settings, Headers(scope=scope)
            _check_host(headers, settings)
            _check_origin(headers, settings)
            if _is_preflight(scope, headers):  # browsers send it without a key
                await _preflight(headers)(scope, response.receive, response.send)
                return
            if settings.key is not None and scope["path"].startswith(NEEDS_KEY):
                _check_key(headers.get("authorization", ""), settings.key)
            scope["app"] = self  # so that the router raises HTTPException for unknown paths
            await self.app(scope, response.receive, response.send)
        except ClientDisconnected:
            response.status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            failure = _error_response_of(self.service, error)
            if failure is None:
                logging.getLogger(__name__).exception("%s %s failed", scope["method"], scope["path"])
                failure = ErrorResponse(500, "an internal error")
            if response.status is not None:  # the response has started: it can only be broken off
                raise
            await response.send_error(failure)

    def _headers(self, scope: Scope) -> dict[str, str]:
        headers = {**SECURITY_HEADERS, "x-request-id": f"req_{secrets.token_hex(12)}"}
        settings, origin = self.service.settings, Headers(scope=scope).get("origin")
        if settings.origins:
            headers["vary"] = "Origin"
            headers["access-control-expose-headers"] = "x-request-id, retry-after"
            if origin is not None and _is_allowed(origin, settings):
                headers["access-control-allow-origin"] = origin
        return headers

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        route = self.routes.get(path) or ("/v1/models" if path.startswith("/v1/models/") else "other")
        self.service.metrics.count(route, status, seconds)
        if self.service.settings.log is not None:
            self.service.settings.log(f"{scope['method']} {route} {status} {seconds:.3f} s")


def _error_response_of(service: Service, error: Exception) -> ErrorResponse | None:
    if isinstance(error, ErrorResponse):
        return error
    if isinstance(error, BorealisError):
        return service.error_response_of(error)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        text = {404: "there is nothing at this path", 405: "this path does not take this method"}
        return ErrorResponse(
            error.status_code, text.get(error.status_code, error.detail), code=code, headers=error.headers
        )
    return None


def is_our_host(host: str, settings: ServerSettings) -> bool:
    """Whether a Host header names this server: any IP address, which needs no DNS, or a name of this machine."""
    match = HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        known = ("localhost", socket.gethostname().lower(), *(given.lower() for given in settings.hosts))
        return name in known or name.endswith(".localhost")
    return True


def _check_host(headers: Headers, settings: ServerSettings) -> None:
    host = headers.get("host", "")
    if len(headers.getlist("host")) != 1 or not is_our_host(host, settings):
        raise ErrorResponse(
            421, f"the Host header {host[:100]!r} does not name this server; see --allow-host", code="host"
        )


def _check_origin(headers: Headers, settings: ServerSettings) -> None:
    """Allow requests without an Origin (from programs), of the server's own page, and of allowed origins."""
    origin = headers.get("origin")
    same_origin = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
    if not same_origin and not _is_allowed(origin or "", settings):
        raise ErrorResponse(
            403, f"pages of {(origin or '')[:100]!r} may not use this server; see --cors", code="origin"
        )


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether this is a CORS preflight request."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _preflight(headers: Headers) -> Response:
    requested = headers.get("access-control-request-headers", "")
    return Response(status_code=204, headers=PREFLIGHT | {"access-control-allow-headers": requested})


def _is_allowed(origin: str, settings: ServerSettings) -> bool:
    return origin in settings.origins or "*" in settings.origins


def _check_key(given: str, key: str) -> None:
    scheme, _, token = given.partition(" ")
    right = hmac.compare_digest(token.strip().encode("utf-8"), key.encode("utf-8"))
    if scheme.lower() != "bearer" or not right:
        message = "a wrong API key" if token else "an API key is needed: Authorization: Bearer …"
        raise ErrorResponse(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
