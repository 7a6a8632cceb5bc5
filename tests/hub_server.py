"""A small Hugging Face Hub on 127.0.0.1: as much of its API as huggingface_hub needs to fetch a snapshot."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
LISTING = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^?]+)")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^?/]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass
class Hub:
    """`repos` maps ids to files; `status` answers for an id with (status, X-Error-Code) instead, `files_only` just
    for its files. `asked` is every request line, `tokens` every Authorization header."""

    repos: dict[str, dict[str, bytes]]
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    files_only: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = answer(hub, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    listing, tree, file = LISTING.match(path), TREE.match(path), FILE.match(path)
    match = listing or tree or file
    repo_id = match[1] if match else ""
    if repo_id in hub.status and (file or repo_id not in hub.files_only):
        status, code = hub.status[repo_id]
        return status, {"X-Error-Code": code, "X-Error-Message": f"refused {repo_id}"}, b"{}"
    files = hub.repos.get(repo_id)
    if match is None or files is None:
        return 401, {"X-Error-Message": "Invalid username or password."}, b"{}"  # what the Hub says of unknown names
    if match[2] not in ("main", "v1", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if listing:
        info = {"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
    if tree:
        rows = [{"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()]
        return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
    assert file is not None
    data = files.get(file[3])
    if data is None:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    return 200, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, data


def etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
