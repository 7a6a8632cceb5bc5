"""A model in a child process: a crash of native code is an exception for the app, and the next request restarts it."""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...errors import BorealisError, Busy, EngineDied, InvalidInput
from ..events import EventSink, GenerationRequest, ModelInfo, Text
from .child_process import child_command, crash_name
from .wire_format import pack, pack_request, unpack, unpack_event

if TYPE_CHECKING:
    from ..llama.loading import LoadProgress

WORKER = f"{__package__}.model_worker"


class IsolatedModel:
    """A backend of `Model`. Every method may be called from any thread."""

    def __init__(
        self,
        path: Path,
        load: Mapping[str, Any],
        on_progress: "LoadProgress | None" = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`load` are the fields of LoadOptions; `command` replaces the worker's. Raises what `load` raises."""
        files: dict[str, Any] = {"loras": [(_absolute(name), scale) for name, scale in load.get("loras", ())]}
        if load.get("mmproj"):
            files["mmproj"] = _absolute(load["mmproj"])
        self._load_message = pack({"path": _absolute(path), "load": {**load, **files}})
        self._command = list(command or child_command(WORKER))
        self._lock = threading.Lock()
        self._worker: _WorkerProcess | None = None
        self._closed = False
        self._restarts = 0
        self._worker = _WorkerProcess(self._command, self._load_message, on_progress)

    @property
    def info(self) -> ModelInfo:
        worker = self._worker
        if worker is None:
            raise BorealisError("the model is closed")
        return worker.info

    def _live_worker(self) -> "_WorkerProcess":
        """The worker process, started again if it died."""
        with self._lock:
            if self._closed or self._worker is None:
                raise BorealisError("the model is closed")
            if self._worker.dead is not None:
                self._worker.close()
                self._restarts += 1
                self._worker = _WorkerProcess(self._command, self._load_message, None)
            return self._worker

    def close(self) -> None:
        """End the process; a second call does nothing."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.close()

    def start(self, request: GenerationRequest, sink: EventSink) -> Callable[[], None]:
        """Start an answer whose events go to `sink`; returns a function that cancels it. Raises InvalidInput, Busy."""
        worker = self._live_worker()
        number = worker.stream({"do": "start", "request": pack_request(request)}, sink)
        return lambda: worker.cancel(number)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """See `InProcessModel.embed`."""
        shape, data, count = self._live_worker().call({"do": "embed", "texts": list(texts)})
        return np.frombuffer(data, "<f4").reshape(shape), count

    def tokenize(self, text: str) -> list[int]:
        """See `InProcessModel.tokenize`."""
        return self._call("tokenize", text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See `InProcessModel.detokenize`."""
        return self._call("detokenize", list(ids))

    def save(self, path: str, conversation: Mapping[str, Any]) -> None:
        """See `InProcessModel.save`."""
        self._call("save", path, conversation)

    def restore(self, path: str) -> dict[str, Any]:
        """See `InProcessModel.restore`."""
        return self._call("restore", path)

    def stats(self) -> dict[str, float]:
        """See `InProcessModel.stats`; `restarts_total` counts the processes that died."""
        return {**self._call("stats"), "restarts_total": self._restarts}

    def _call(self, what: str, *arguments: Any) -> Any:
        return self._live_worker().call({"do": what, "with": arguments})


class _WorkerProcess:
    """The child process, and the thread that reads its messages."""

    def __init__(self, command: Sequence[str], load_message: bytes, on_progress: "LoadProgress | None") -> None:
        self.dead: str | None = None
        self._lock = threading.Lock()
        self._sinks: dict[int, EventSink] = {}
        self._replies: dict[int, _PendingReply] = {}
        self._last_number = 0
        self._phase = "starting"
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            raise BorealisError(f"the model's process cannot be started ({error.strerror or error})") from error
        try:
            self._write(load_message)
            self.info = self._wait_until_loaded(on_progress)
        except BaseException:
            self.close()
            raise
        self._listener = threading.Thread(target=self._listen, name="borealis-gguf listener", daemon=True)
        self._listener.start()

    def _wait_until_loaded(self, on_progress: "LoadProgress | None") -> ModelInfo:
        for line in self._process.stdout or ():
            message = _parse(line)
            if message is None:
                break
            if "progress" in message:
                self._phase = "loading the model"
                if on_progress is not None:
                    on_progress(message["progress"])
            elif "error" in message:
                raise _error(message)
            elif "ready" in message:
                return ModelInfo(**message["ready"])
        raise EngineDied(self._death_message())

    def stream(self, request: dict[str, Any], sink: EventSink) -> int:
        """Send a request whose events go to `sink`; returns its number. Raises the error that the child replies."""
        number = self._next_number()
        if not self._sinks:
            self._phase = "reading the prompt"
        self._sinks[number] = sink
        try:
            self._exchange(number, request)
        except BaseException:
            self._sinks.pop(number, None)
            raise
        return number

    def call(self, request: dict[str, Any]) -> Any:
        """The reply to a request. Raises the error that the child replies."""
        return self._exchange(self._next_number(), request)

    def cancel(self, number: int) -> None:
        """Cancel an answer, which may have ended already."""
        self._write(pack({"id": number, "do": "cancel"}))

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        if self.dead is None:
            self._end_all(BorealisError("the model is closed"))
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None and pipe is not self._process.stdout:
                    pipe.close()

    def _next_number(self) -> int:
        with self._lock:
            self._last_number += 1
            return self._last_number

    def _exchange(self, number: int, request: dict[str, Any]) -> Any:
        reply = self._replies[number] = _PendingReply()
        self._write(pack({"id": number, **request}))
        if self.dead is not None:
            self._replies.pop(number, None)
            raise EngineDied(self.dead)
        reply.arrived.wait()
        if reply.error is not None:
            raise reply.error
        return reply.value

    def _write(self, line: bytes) -> None:
        pipe = self._process.stdin
        with self._lock, contextlib.suppress(OSError, ValueError):  # it died: the listener thread reports why
            if pipe is not None:
                pipe.write(line)
                pipe.flush()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            message = _parse(line)
            if message is None:
                break  # truncated by a crash, or not from this package
            self._deliver(message)
        if self.dead is None:
            self._end_all(EngineDied(self._death_message()))

    def _deliver(self, message: dict[str, Any]) -> None:
        number: Any = message.get("id")
        reply = None if "event" in message else self._replies.pop(number, None)  # events may arrive before the reply
        if reply is not None:
            reply.value, reply.error = message.get("value"), _error(message) if "error" in message else None
            reply.arrived.set()
        elif (sink := self._sinks.get(number)) is not None:
            event = _error(message) if "error" in message else unpack_event(message["event"])
            if isinstance(event, Text):
                self._phase = "writing the answer"
            else:
                self._sinks.pop(number, None)
            sink(event)

    def _end_all(self, error: BorealisError) -> None:
        """End all pending requests and answers with `error`."""
        self.dead = str(error)
        while self._replies:
            with contextlib.suppress(KeyError):
                reply = self._replies.pop(next(iter(self._replies)))
                reply.error = error
                reply.arrived.set()
        while self._sinks:
            with contextlib.suppress(KeyError):
                self._sinks.pop(next(iter(self._sinks)))(error)

    def _death_message(self) -> str:
        returncode = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read(1_000_000).decode("utf-8", "replace").splitlines()
        crash = crash_name(returncode)
        if crash is None:
            last_line = " ".join(lines[-1:]) or "it said nothing"
            return f"the model's process ended ({returncode}) while {self._phase}: {last_line}"
        assertion = next((f": {line.strip()}" for line in lines if "GGML_ASSERT" in line), "")
        hint = "memory may be short" if crash == "SIGKILL" else "this is a fault of llama.cpp or of the model file"
        return f"llama.cpp died ({crash}) while {self._phase}{assertion}; {hint}"


class _PendingReply:
    """Set by the listener thread when the reply to a request arrives."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


def _absolute(path: str | Path) -> str:
    """The child may have another working directory."""
    return str(Path(path).absolute())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = unpack(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _error(message: Mapping[str, Any]) -> BorealisError:
    if message.get("retry_after"):
        return Busy(str(message["error"]), int(message["retry_after"]))
    kind = InvalidInput if message.get("code") == InvalidInput.exit_code else BorealisError
    return kind(str(message["error"]))
