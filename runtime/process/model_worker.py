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

from ...errors import BorealisError, Busy, EngineDied
from ..events import Event, Text
from .child_process import die_quietly, private_stdout
from .in_process_model import InProcessModel
from .model_loading import LoadOptions, load_in_process
from .wire_format import pack, pack_event, unpack, unpack_request

OUT_OF_MEMORY = "out of memory; use a smaller model or a smaller context"


class ModelWorker:
    """One model and the pipe to the parent."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.lock = threading.Lock()
        self.answers: dict[int, RunningAnswer] = {}
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
        """Carry out one request and send its result or its error; every request gets one of them."""
        try:
            self.send(id=request["id"], value=self.do(request))
        except BaseException as error:
            self.answers.pop(request["id"], None)
            self.send_error(request["id"], error)

    def send_error(self, number: int, error: BaseException) -> None:
        """Send the error that ended request or answer `number`; where it ended the engine, end the process instead."""
        if isinstance(error, EngineDied):
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(1)  # the parent tells all that wait, and starts another process
        self.send(id=number, **error_message(error))

    def do(self, request: dict[str, Any]) -> Any:
        model, number, what = self.model, request["id"], request["do"]
        if model is None:
            raise BorealisError("the model is not loaded")
        if what == "start":
            answer = self.answers[number]
            answer.started(model.start(unpack_request(request["request"]), lambda event: self.event(number, event)))
            return None
        if what == "embed":
            vectors, count = model.embed(*request["with"])
            return [vectors.shape, vectors.astype("<f4").tobytes(), count]
        if what in ("tokenize", "detokenize", "save", "restore", "stats"):
            return getattr(model, what)(*request["with"])
        raise BorealisError(f"no such request: {what!r}")

    def event(self, number: int, event: Event | BaseException) -> None:
        """Send an event of answer `number`."""
        if not isinstance(event, Text):
            self.answers.pop(number, None)
        if isinstance(event, BaseException):
            self.send_error(number, event)
        else:
            self.send(id=number, event=pack_event(event))

    def cancel(self, number: int) -> None:
        """Cancel an answer, which may not have started yet, or have ended already."""
        if (answer := self.answers.get(number)) is not None:
            answer.cancel()


class RunningAnswer:
    """How to cancel an answer that is being started or generated."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._cancelled = False

    def started(self, stop: Callable[[], None]) -> None:
        """`stop` cancels the answer; called at once where it was cancelled before."""
        with self._lock:
            self._stop, cancelled = stop, self._cancelled
        if cancelled:
            stop()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled, stop = True, self._stop
        if stop is not None:
            stop()


def error_message(error: BaseException) -> dict[str, Any]:
    """An error as the fields of a message."""
    if isinstance(error, MemoryError):
        return {"error": OUT_OF_MEMORY, "code": 1}
    if not isinstance(error, BorealisError):
        return {"error": f"the model's process failed: {error!r}", "code": 1}
    retry_after = error.retry_after if isinstance(error, Busy) else None
    return {"error": str(error), "code": error.exit_code, "retry_after": retry_after}


def main() -> None:
    """Serves one model. Never raises: every error is sent to the parent."""
    die_quietly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    worker = ModelWorker(private_stdout())
    try:
        first = unpack(sys.stdin.buffer.readline())
        worker.load(first["path"], first["load"])
    except (BorealisError, MemoryError) as error:
        worker.send(**error_message(error))
        return
    except (ValueError, json.JSONDecodeError):
        return  # the parent died while writing
    with ThreadPoolExecutor(4) as threads, ThreadPoolExecutor(1) as stats_thread:
        for line in sys.stdin.buffer:
            request = unpack(line)
            if request["do"] == "cancel":
                worker.cancel(request["id"])
                continue
            if request["do"] == "start":
                worker.answers[request["id"]] = RunningAnswer()
            # statistics are answered at once, even when all other threads are busy
            (stats_thread if request["do"] == "stats" else threads).submit(worker.handle, request)
        os._exit(0)  # nobody waits for what still runs
