"""What stands before every request: who may ask, from which page, and what every answer says to browsers.

A model on this machine must not be usable by any web page its owner visits. A page cannot forge the Host header, so one
that has its own name resolve to 127.0.0.1 is found out by it; nor the Origin header, so one that posts here is too.
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
from .error_response import GONE, ClientGone, Refusal
from .http_response import Reply
from .service_state import Service, Settings

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+)(?::\d{1,5})?")
NEEDS_KEY = ("/v1/", "/metrics")
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""What a response says unless it says otherwise itself."""

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-max-age": "600",
    "access-control-allow-private-network": "true",
}


class Guard:
    """Lets requests through to `app`, and turns whatever is raised there into an answer."""

    def __init__(self, app: ASGIApp, service: Service, routes: Mapping[str, str]) -> None:
        """`routes`: the paths that exist, each with the name it is counted under."""
        self.app, self.service, self.routes = app, service, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply = Reply(scope, receive, send, self._headers(scope))
        begun = time.monotonic()
        try:
            await self._answer(scope, reply)
        finally:
            self.service.let_go(scope)
            self._count(scope, reply.status or GONE, time.monotonic() - begun)

    async def _answer(self, scope: Scope, reply: Reply) -> None:
        try:
            settings, headers = self.service.settings, Headers(scope=scope)
            _check_host(headers, settings)
            _check_origin(headers, settings)
            if _is_preflight(scope, headers):  # comes without a key
                await _preflight(headers)(scope, reply.receive, reply.send)
                return
            if settings.key is not None and scope["path"].startswith(NEEDS_KEY):
                _check_key(headers.get("authorization", ""), settings.key)
            scope["app"] = self  # the router then raises what it does not find
            await self.app(scope, reply.receive, reply.send)
        except ClientGone:
            reply.status = GONE
        except Exception as error:
            refusal = _refusal(self.service, error)
            if refusal is None:
                logging.getLogger(__name__).exception("%s %s failed", scope["method"], scope["path"])
                refusal = Refusal(500, "an internal error")
            if reply.status is not None:  # it began already: all that is left is to end it
                raise
            await reply.refuse(refusal)

    def _headers(self, scope: Scope) -> dict[str, str]:
        headers = {**SECURITY, "x-request-id": f"req_{secrets.token_hex(12)}"}
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


def _refusal(service: Service, error: Exception) -> Refusal | None:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BorealisError):
        return service.refusal_of(error)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        text = {404: "there is nothing at this path", 405: "this path does not take this method"}
        return Refusal(error.status_code, text.get(error.status_code, error.detail), code=code, headers=error.headers)
    return None


def is_our_host(host: str, settings: Settings) -> bool:
    """Whether a Host header names this server: by an address, which needs no resolving, or by a name known here."""
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


def _check_host(headers: Headers, settings: Settings) -> None:
    host = headers.get("host", "")
    if len(headers.getlist("host")) != 1 or not is_our_host(host, settings):
        raise Refusal(421, f"the Host header {host[:100]!r} does not name this server; see --allow-host", code="host")


def _check_origin(headers: Headers, settings: Settings) -> None:
    """Programs have no origin; the page of this server has the one it was fetched from."""
    origin = headers.get("origin")
    own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
    if not own and not _is_allowed(origin or "", settings):
        raise Refusal(403, f"pages of {(origin or '')[:100]!r} may not use this server; see --cors", code="origin")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks if a page may ask."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _preflight(headers: Headers) -> Response:
    asked = headers.get("access-control-request-headers", "")
    return Response(status_code=204, headers=PREFLIGHT | {"access-control-allow-headers": asked})


def _is_allowed(origin: str, settings: Settings) -> bool:
    return origin in settings.origins or "*" in settings.origins


def _check_key(given: str, key: str) -> None:
    scheme, _, token = given.partition(" ")
    right = hmac.compare_digest(token.strip().encode("utf-8"), key.encode("utf-8"))
    if scheme.lower() != "bearer" or not right:
        message = "a wrong API key" if token else "an API key is needed: Authorization: Bearer …"
        raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
