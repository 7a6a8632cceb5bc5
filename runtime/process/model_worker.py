"""The model's process: reads requests from standard input and writes events, until its input ends."""

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
from .in_process_model import InProcessModel
from .model_loading import LoadOptions, load_in_process
from .wire_format import pack, pack_event, unpack, unpack_request


class ModelWorker:
    """One model and the pipe to the parent."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.lock = threading.Lock()
        self.running: dict[int, Callable[[], None] | None] = {}
        self.model: InProcessModel | None = None

    def send(self, **message: Any) -> None:
        """Write to the parent; exits when the parent is gone."""
        line = pack(message)
        try:
            with self.lock:
                self.pipe.write(line)
        except OSError:
            os._exit(1)

    def load(self, path: str, arguments: dict[str, Any]) -> None:
        self.model = load_in_process(Path(path), LoadOptions(**arguments), lambda done: self.send(progress=done))
        info = self.model.info
        self.send(ready={name: getattr(info, name) for name in type(info).__slots__})  # type: ignore[attr-defined]

    def handle(self, request: dict[str, Any]) -> None:
        """Carry out one request and send its result or its error."""
        try:
            self.send(id=request["id"], value=self.do(request))
        except BorealisError as error:
            self.send(id=request["id"], **error_message(error))
        except MemoryError:
            self.send(id=request["id"], error="out of memory; use a smaller model or a smaller context", code=1)
        except Exception as error:
            self.send(id=request["id"], error=f"the model's process failed: {error!r}", code=1)

    def do(self, request: dict[str, Any]) -> Any:
        model, number, what = self.model, request["id"], request["do"]
        if model is None:
            raise BorealisError("the model is not loaded")
        if what == "start":
            self.running[number] = None
            stop = model.start(unpack_request(request["request"]), lambda event: self.event(number, event))
            if number in self.running:  # it may have ended already
                self.running[number] = stop
            return None
        if what == "embed":
            vectors, count = model.embed(request["texts"])
            return [vectors.shape, vectors.astype("<f4").tobytes(), count]
        if what in ("tokenize", "detokenize", "save", "restore", "stats"):
            return getattr(model, what)(*request["with"])
        raise BorealisError(f"no such request: {what!r}")

    def event(self, number: int, event: Event | BaseException) -> None:
        """Send an event of answer `number`."""
        if isinstance(event, BaseException):
            self.send(id=number, **error_message(event))
        else:
            self.send(id=number, event=pack_event(event))
        if not hasattr(event, "text"):
            self.running.pop(number, None)

    def cancel(self, number: int) -> None:
        if (stop := self.running.get(number)) is not None:
            stop()


def error_message(error: BaseException) -> dict[str, Any]:
    """An error as the fields of a message."""
    code = error.exit_code if isinstance(error, BorealisError) else 1
    return {"error": str(error), "code": code, "retry_after": error.retry_after if isinstance(error, Busy) else None}


def main() -> None:
    """Serves one model. Never raises: every error is sent to the parent."""
    die_quietly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    worker = ModelWorker(private_stdout())
    try:
        first = unpack(sys.stdin.buffer.readline())
        worker.load(first["path"], first["load"])
    except BorealisError as error:
        worker.send(**error_message(error))
        return
    except MemoryError:
        worker.send(error="out of memory; use a smaller model or a smaller context", code=1)
        return
    except (ValueError, json.JSONDecodeError):
        return  # the parent died while writing
    with ThreadPoolExecutor(4) as threads, ThreadPoolExecutor(1) as stats_thread:
        for line in sys.stdin.buffer:
            request = unpack(line)
            if request["do"] == "cancel":
                worker.cancel(request["id"])
            else:  # statistics are answered at once, even when all other threads are busy
                (stats_thread if request["do"] == "stats" else threads).submit(worker.handle, request)
        os._exit(0)  # nobody waits for what still runs
