"""A real server on a free port, in a thread of the tests; its model lives in a child process, as users have it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from borealis_gguf import load
from borealis_gguf.runtime.serve.server import Server, listen
from borealis_gguf.runtime.serve.service_state import ServerSettings

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Serving:
    """A running server. `port` is at 127.0.0.1."""

    server: Server
    port: int

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=30)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, /, **headers: str) -> Reply:
        """One request, as it is given; names of headers have _ for -."""
        with closing(self.connect()) as wire:
            wire.sendall(request(method, path, body, **headers))
            return read_reply(wire)

    def post(self, path: str, content: Any, **headers: str) -> Reply:
        return self.ask("POST", path, json.dumps(content).encode(), **headers)

    def error(self, path: str, content: Any) -> tuple[int, str | None, str]:
        """Status, param and message of what is refused."""
        status, _, body = self.post(path, content)
        error = json.loads(body)["error"]
        return status, error["param"], error["message"]

    def stats(self) -> dict[str, float]:
        model = self.server.service.model
        assert model is not None
        return model.stats()


def request(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """The bytes of a request that ends its connection."""
    given = {"Host": "127.0.0.1", "Connection": "close"}
    if body is not None:
        given |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    given |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (body or b"")


def read_reply(wire: socket.socket) -> Reply:
    """Read until the server ends the connection."""
    data = b""
    while piece := wire.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@contextmanager
def serving(
    model: Path, parallel: int = 2, queue: int = 32, send_buffer: int | None = None, **settings: Any
) -> Iterator[Serving]:
    """A server with a loaded model, and its end. `send_buffer`: bytes the system takes for slow readers."""
    listener = listen("127.0.0.1", 0)
    if send_buffer is not None:  # connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    ready = threading.Event()
    server = Server(
        lambda progress: load(
            model, parallel=parallel, threads=1, isolate=True, max_queue=queue, on_progress=progress, device="cpu"
        ),
        ServerSettings(name=model.stem, queue=queue, **settings),
        lambda model: ready.set(),
    )
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run_until_end, args=(listener,))
    thread.start()
    try:
        until(lambda: ready.is_set() or server.failure is not None, 30)
        assert server.failure is None, server.failure
        yield Serving(server, port)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
