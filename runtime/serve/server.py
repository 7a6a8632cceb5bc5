"""Listening, loading, and ending."""

import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from ...errors import Cancelled, InvalidInput
from .connection_timeout import Connection
from .routes import make_app
from .service_state import Service, Settings

if TYPE_CHECKING:
    from ..model import Model

Progress = Callable[[float], None]
Load = Callable[[Progress], "Model"]

CONNECTIONS = 1000
KEEP_ALIVE = 60
ENDING = 1
"""Seconds for running answers to be cancelled, and for their clients to be told."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine. Raises InvalidInput when there is none to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"--host {host}: not an address of this machine ({error})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "nt":  # there SO_REUSEADDR would let two servers have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # pyright: ignore
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidInput(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine, or for all addresses on another, finds it."""
    address, port = listener.getsockname()[:2]
    host = socket.gethostname() if ipaddress.ip_address(address.partition("%")[0]).is_unspecified else address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Answers from the first moment on; with 503 until `load` has given the model, which is closed in the end."""

    def __init__(
        self,
        load: Load,
        settings: Settings,
        on_ready: Callable[["Model"], None] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.service = Service(settings)
        self.failure: BaseException | None = None
        self._load, self._on_ready, self._on_progress = load, on_ready, on_progress
        super().__init__(
            uvicorn.Config(
                make_app(self.service),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=ENDING,
            )
        )

    def run_until_end(self, listener: socket.socket) -> None:
        """Serve until a signal, or `should_exit`. Raises what loading the model raised."""
        try:
            self.run(sockets=[listener])
        finally:
            listener.close()
            self._end().join(ENDING)
        if self.failure is not None:
            raise self.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A daemon: an end in the middle of loading does not wait for it.
        threading.Thread(target=self._get_model, name="borealis-gguf loading", daemon=True).start()

    def _get_model(self) -> None:
        try:
            model = self._load(self._progress)
            self.service.model = model
            if self.service.stopping:
                model.close()
            elif self._on_ready is not None:
                self._on_ready(model)
        except Cancelled:
            pass
        except BaseException as error:
            self.failure = error
            self.should_exit = True

    def _progress(self, fraction: float) -> None:
        if self.should_exit:
            raise Cancelled("the server is ending")
        self.service.loaded = fraction
        if self._on_progress is not None:
            self._on_progress(fraction)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end()
        await super().shutdown(sockets)

    def _end(self) -> threading.Thread:
        """Cancel all answers, so that their clients are told; and free the model, which may be starting again."""
        self.service.stopping = True
        model = self.service.model
        ending = threading.Thread(target=lambda: model and model.close(), daemon=True)
        ending.start()
        return ending
