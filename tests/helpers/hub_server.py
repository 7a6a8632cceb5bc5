"""A small Hugging Face Hub on 127.0.0.1: as much of its API as huggingface_hub needs to fetch a snapshot."""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIGNATURE = "X-Amz-Signature=s1gnature"
COMMIT = "c0ffee" + "0" * 34
LISTING = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^?]+)")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^?/]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass(frozen=True)
class Fault:
    """What one GET of a file is answered with instead of what it should be.

    `status` and `headers` replace those of the right answer; `body` is made of the right one. After `reset` bytes of
    the body the connection is reset, after `close` bytes it is closed, whatever length was promised; `stall` are
    seconds between headers and body.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[bytes], bytes] = bytes
    ignore_range: bool = False
    reset: int | None = None
    close: int | None = None
    stall: float = 0.0


@dataclass
class Hub:
    """`repos` maps ids to files; `status` answers for an id with (status, X-Error-Code) instead, `files_only` just
    for its files. `faults` are used up, the first of a file's name at its first GET. With `cdn`, the server links to
    itself under another host name for weights, as the Hub does. `asked` is every request line, `tokens` every
    Authorization header, `hosts` the same by the name of the host that got it, `asked_ranges` every Range header, and
    `ranges` those that were followed."""

    repos: dict[str, dict[str, bytes]]
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    files_only: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    cdn: bool = False
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    hosts: dict[str, set[str]] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    asked_ranges: list[str] = field(default_factory=list)
    links: int = 0
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            token = self.headers.get("Authorization", "")
            if not self.path.startswith("/api/agent"):  # the library's own question, without a token
                hub.tokens.add(token)
                hub.hosts.setdefault(self.headers["Host"].partition(":")[0], set()).add(token)
            status, headers, body = answer(hub, self.path)
            asked = self.headers.get("Range")
            hub.asked_ranges += [asked] if asked else []
            fault = self.fault(status)
            if asked and status == 200 and self.command == "GET" and not fault.ignore_range:
                hub.ranges.append(asked)
                status, headers, body = part(asked, headers, body)
            headers, body = headers | fault.headers, fault.body(body if (fault.status or 0) < 400 else b"sorry")
            self.send_response(fault.status or status)
            if "Transfer-Encoding" not in headers:
                headers = {"Content-Length": str(len(body))} | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.send(body, fault)

        do_HEAD = do_GET  # noqa: N815

        def fault(self, status: int) -> Fault:
            waiting = hub.faults.get(self.path.partition("?")[0].rpartition("/")[2])
            return waiting.pop(0) if waiting and self.command == "GET" and status == 200 else Fault()

        def send(self, body: bytes, fault: Fault) -> None:
            if fault.stall:
                time.sleep(fault.stall)
            self.wfile.write(body[: fault.reset if fault.reset is not None else fault.close])
            if fault.reset is not None:
                time.sleep(0.05)  # what was sent arrives before the reset throws it away
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            if fault.reset is not None or fault.close is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away, or a connection that a fault has closed."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def part(asked: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to a Range header."""
    first, last = asked.removeprefix("bytes=").split("-")
    begin, end = int(first), min(int(last or len(body)), len(body) - 1)
    if begin >= len(body):
        return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
    return 206, headers | {"Content-Range": f"bytes {begin}-{end}/{len(body)}"}, body[begin : end + 1]


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    if path.startswith("/cdn/"):
        return answer_cdn(hub, path)
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
        rows = [tree_entry(name, data) for name, data in files.items()]
        return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
    assert file is not None
    data = files.get(file[3])
    if data is None:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    if hub.cdn and is_large(file[3]):
        hub.links += 1
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"', "X-Repo-Commit": COMMIT}
        location = f"http://localhost:{hub.port}/cdn/{repo_id}/{file[3]}?{SIGNATURE}&n={hub.links}"
        return 302, linked | {"Location": location}, b""
    etag = sha256(data) if is_large(file[3]) else git_sha1(data)
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, data


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file outside of git, where a pointer to it lies."""
    return name.endswith((".safetensors", ".gguf"))


def tree_entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the Hub lists it: with git's digest of it, or of the pointer and then with its own."""
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    if not is_large(name):
        return entry
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n".encode()
    large = {"oid": sha256(data), "size": len(data), "pointerSize": len(pointer)}
    return entry | {"oid": git_sha1(pointer), "lfs": large}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answer_cdn(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Another host, which wants its own signature and has ETags of its own."""
    repo_id, _, name = path.removeprefix("/cdn/").partition("?")[0].rpartition("/")
    if SIGNATURE not in path:
        return 403, {}, b"<Error>AccessDenied</Error>"
    data = hub.repos[repo_id][name]
    return 200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}, data
