"""The static files of the chat page, read once at the start: no request can name any other file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No resources of other origins, no inline scripts or styles, no text that becomes markup or code."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    data: bytes
    type: str
    tag: str


def read_page_files(folder: Path) -> Mapping[str, StaticFile]:
    """The files of the page by their URL paths; empty where it is not installed."""
    files = {}
    for path in sorted(folder.rglob("*")) if (folder / "index.html").is_file() else ():
        if path.is_file() and path.suffix in TYPES:
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            files["/" + path.relative_to(folder).as_posix()] = StaticFile(data, TYPES[path.suffix], tag)
    return {"/": files["/index.html"], **files} if files else {}


async def serve_file(file: StaticFile, request: Request) -> Response:
    """The response with a file, or 304 for a browser that has it cached."""
    headers = {"etag": file.tag, "cache-control": "no-cache", "content-security-policy": CONTENT_SECURITY_POLICY}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers={**headers, "content-type": file.type})
