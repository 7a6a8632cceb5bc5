"""The server process: listens, loads the model in a thread, shuts down."""

import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from ...errors import Cancelled, InvalidInput
from .connection_timeout import TimeoutConnection
from .routes import make_app
from .service_state import ServerSettings, Service

if TYPE_CHECKING:
    from ..model import Model

ProgressCallback = Callable[[float], None]
LoadFunction = Callable[[ProgressCallback], "Model"]

MAX_CONNECTIONS = 1000
KEEP_ALIVE_SECONDS = 60
SHUTDOWN_SECONDS = 1
"""Time for running answers to be cancelled, and for their clients to get the error."""


def listen(host: str, port: int, *, local_only: bool = False) -> socket.socket:
    """A listening socket. Raises InvalidInput when the address or the port cannot be used.

    With `local_only`, also for an address that other machines reach.
    """
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
    if local_only and not is_loopback(listener):
        listener.close()
        raise InvalidInput(f"--host {host}: other machines could use the model; give an --api-key, or say --insecure")
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine reach `listener`."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """The server's URL: for a browser on this machine, or on any other if it listens at all addresses."""
    address, port = listener.getsockname()[:2]
    host = socket.gethostname() if ipaddress.ip_address(address.partition("%")[0]).is_unspecified else address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Responds at once, with 503 until `load` has returned the model, and closes the model at shutdown."""

    def __init__(
        self,
        load: LoadFunction,
        settings: ServerSettings,
        on_ready: Callable[["Model"], None] | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        self.service = Service(settings)
        self.failure: BaseException | None = None
        self._load, self._on_ready, self._on_progress = load, on_ready, on_progress
        super().__init__(
            uvicorn.Config(
                make_app(self.service),
                http=TimeoutConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )

    def run_until_end(self, listener: socket.socket) -> None:
        """Serve until a signal, or until `should_exit` is set. Raises what loading the model raised."""
        try:
            self.run(sockets=[listener])
        finally:
            listener.close()
            self._close_model().join(SHUTDOWN_SECONDS)
        if self.failure is not None:
            raise self.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # a daemon, so that shutdown does not wait for loading
        threading.Thread(target=self._load_model, name="borealis-gguf loading", daemon=True).start()

    def _load_model(self) -> None:
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
        self.service.load_progress = fraction
        if self._on_progress is not None:
            self._on_progress(fraction)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._close_model()
        await super().shutdown(sockets)

    def _close_model(self) -> threading.Thread:
        """Close the model in a thread, which cancels all answers; it may just be restarting."""
        self.service.stopping = True
        model = self.service.model
        closing = threading.Thread(target=lambda: model and model.close(), daemon=True)
        closing.start()
        return closing
