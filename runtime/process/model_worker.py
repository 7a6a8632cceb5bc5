"""The model's process: reads requests from standard input, writes events, ends when its input does."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from ...errors import BorealisError, Busy
from ..events import Event
from .child_process import die_quietly, private_stdout
from .in_process_model import Local
from .wire_format import pack, pack_ask, pack_event, unpack, unpack_ask

__all__ = ["main", "pack_ask"]


class Child:
    """One model and the pipe to the parent."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.lock = threading.Lock()
        self.running: dict[int, Callable[[], None] | None] = {}
        self.local: Local | None = None

    def send(self, **message: Any) -> None:
        """Tell the parent; without one there is nothing left to do."""
        line = pack(message)
        try:
            with self.lock:
                self.pipe.write(line)
        except OSError:
            os._exit(1)

    def load(self, path: str, arguments: dict[str, Any]) -> None:
        from ..model import load_here

        loras = [(name, scale) for name, scale in arguments.pop("loras")]
        self.local = load_here(Path(path), loras=loras, on_progress=lambda done: self.send(progress=done), **arguments)
        info = self.local.info
        self.send(ready={name: getattr(info, name) for name in type(info).__slots__})  # type: ignore[attr-defined]

    def handle(self, request: dict[str, Any]) -> None:
        """Do what one request says; every error is an answer."""
        try:
            self.send(id=request["id"], value=self.do(request))
        except BorealisError as error:
            self.send(id=request["id"], **described(error))
        except MemoryError:
            self.send(id=request["id"], error="out of memory; use a smaller model or a smaller context", code=1)
        except Exception as error:
            self.send(id=request["id"], error=f"the model's process failed: {error!r}", code=1)

    def do(self, request: dict[str, Any]) -> Any:
        local, number, what = self.local, request["id"], request["do"]
        if local is None:
            raise BorealisError("the model is not loaded")
        if what == "start":
            self.running[number] = None
            stop = local.start(unpack_ask(request["ask"]), lambda event: self.event(number, event))
            if number in self.running:  # it may have ended already
                self.running[number] = stop
            return None
        if what == "embed":
            vectors, count = local.embed(request["texts"])
            return [vectors.shape, vectors.astype("<f4").tobytes(), count]
        if what in ("tokenize", "detokenize", "save", "restore", "stats"):
            return getattr(local, what)(*request["with"])
        raise BorealisError(f"no such request: {what!r}")

    def event(self, number: int, event: Event | BaseException) -> None:
        """Pass an event of answer `number` on."""
        if isinstance(event, BaseException):
            self.send(id=number, **described(event))
        else:
            self.send(id=number, event=pack_event(event))
        if not hasattr(event, "text"):
            self.running.pop(number, None)

    def cancel(self, number: int) -> None:
        if (stop := self.running.get(number)) is not None:
            stop()


def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    code = error.exit_code if isinstance(error, BorealisError) else 1
    return {"error": str(error), "code": code, "retry_after": error.retry_after if isinstance(error, Busy) else None}


def main() -> None:
    """Never raises: every error is a line to the parent."""
    die_quietly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    child = Child(private_stdout())
    try:
        first = unpack(sys.stdin.buffer.readline())
        child.load(first["path"], first["load"])
    except BorealisError as error:
        child.send(**described(error))
        return
    except MemoryError:
        child.send(error="out of memory; use a smaller model or a smaller context", code=1)
        return
    except (ValueError, json.JSONDecodeError):
        return  # the parent died while it wrote
    with ThreadPoolExecutor(4) as workers, ThreadPoolExecutor(1) as pulse:
        for line in sys.stdin.buffer:
            request = unpack(line)
            if request["do"] == "cancel":
                child.cancel(request["id"])
            else:  # how the model is can be told at once, even when all workers wait
                (pulse if request["do"] == "stats" else workers).submit(child.handle, request)
        os._exit(0)  # whatever still runs, nobody waits for it
