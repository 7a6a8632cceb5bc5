"""The files of the page at `/`, read once: no request can name any other file."""

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
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing written in the page, and no text that becomes markup or code."""


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    type: str
    tag: str


def read_page(folder: Path) -> Mapping[str, File]:
    """The files of the page by their paths in URLs; none where it is not installed."""
    files = {}
    for path in sorted(folder.rglob("*")) if (folder / "index.html").is_file() else ():
        if path.is_file() and path.suffix in TYPES:
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            files["/" + path.relative_to(folder).as_posix()] = File(data, TYPES[path.suffix], tag)
    return {"/": files["/index.html"], **files} if files else {}


async def show(file: File, request: Request) -> Response:
    """One of the files, or 304 for a browser that has it."""
    headers = {"etag": file.tag, "cache-control": "no-cache", "content-security-policy": POLICY}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers={**headers, "content-type": file.type})
