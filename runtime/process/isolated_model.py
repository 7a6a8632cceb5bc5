"""A model in a process of its own: when native code dies, the app gets an exception, the next request a new one."""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...errors import BorealisError, Busy, EngineDied, InvalidInput
from ..events import Ask, Event, Info, Text
from .child_process import child_command, crash_name
from .wire_format import pack, pack_ask, unpack, unpack_event

if TYPE_CHECKING:
    from ..llama.engine import Progress

CHILD = f"{__package__}.model_worker"
Sink = Callable[[Event | BaseException], None]


class Isolated:
    """A backend of `Model`. Every method may be called from any thread."""

    def __init__(
        self,
        path: Path,
        load: Mapping[str, Any],
        on_progress: "Progress | None" = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`load` are the arguments of `load_here`; `command` replaces the child's. Raises what loading raises."""
        files: dict[str, Any] = {"loras": [(_absolute(name), scale) for name, scale in load.get("loras", ())]}
        if load.get("mmproj"):
            files["mmproj"] = _absolute(load["mmproj"])
        self._first = pack({"path": _absolute(path), "load": {**load, **files}})
        self._command = list(command or child_command(CHILD))
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._restarts = 0
        self._child = _Child(self._command, self._first, on_progress)

    @property
    def info(self) -> Info:
        child = self._child
        if child is None:
            raise BorealisError("the model is closed")
        return child.info

    def _living(self) -> "_Child":
        """The process, started again if it died."""
        with self._lock:
            if self._closed or self._child is None:
                raise BorealisError("the model is closed")
            if self._child.dead is not None:
                self._child.close()
                self._restarts += 1
                self._child = _Child(self._command, self._first, None)
            return self._child

    def close(self) -> None:
        """End the process; a second call does nothing."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.close()

    def start(self, ask: Ask, sink: Sink) -> Callable[[], None]:
        """Begin an answer, whose events go to `sink`; what is returned cancels it. Raises InvalidInput, Busy."""
        child = self._living()
        number = child.ask({"do": "start", "ask": pack_ask(ask)}, sink)
        return lambda: child.cancel(number)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """See `Local.embed`."""
        shape, data, count = self._living().call({"do": "embed", "texts": list(texts)})
        return np.frombuffer(data, "<f4").reshape(shape), count

    def tokenize(self, text: str) -> list[int]:
        """See `Local.tokenize`."""
        return self._call("tokenize", text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See `Local.detokenize`."""
        return self._call("detokenize", list(ids))

    def save(self, path: str, conversation: Mapping[str, Any]) -> None:
        """See `Local.save`."""
        self._call("save", path, conversation)

    def restore(self, path: str) -> dict[str, Any]:
        """See `Local.restore`."""
        return self._call("restore", path)

    def stats(self) -> dict[str, float]:
        """See `Local.stats`; `restarts_total` counts the processes that died."""
        return {**self._call("stats"), "restarts_total": self._restarts}

    def _call(self, what: str, *arguments: Any) -> Any:
        return self._living().call({"do": what, "with": arguments})


class _Child:
    """One process, and the thread that listens to it."""

    def __init__(self, command: Sequence[str], first: bytes, on_progress: "Progress | None") -> None:
        self.dead: str | None = None
        self._lock = threading.Lock()
        self._sinks: dict[int, Sink] = {}
        self._replies: dict[int, _Reply] = {}
        self._last = 0
        self._phase = "starting"
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
            )
        except OSError as error:
            raise BorealisError(f"the model's process cannot be started ({error.strerror or error})") from error
        try:
            self._write(first)
            self.info = self._loaded(on_progress)
        except BaseException:
            self.close()
            raise
        self._listener = threading.Thread(target=self._listen, name="borealis-gguf listener", daemon=True)
        self._listener.start()

    def _loaded(self, on_progress: "Progress | None") -> Info:
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
                return Info(**message["ready"])
        raise EngineDied(self._obituary())

    def ask(self, request: dict[str, Any], sink: Sink) -> int:
        """Begin what has events; the number it has from now on. Raises what the child answers."""
        number = self._number()
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
        """The answer to a request that has one. Raises what the child answers."""
        return self._exchange(self._number(), request)

    def cancel(self, number: int) -> None:
        """End an answer; it may have ended already."""
        self._write(pack({"id": number, "do": "cancel"}))

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        if self.dead is None:
            self._die(BorealisError("the model is closed"))
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None and pipe is not self._process.stdout:
                    pipe.close()

    def _number(self) -> int:
        with self._lock:
            self._last += 1
            return self._last

    def _exchange(self, number: int, request: dict[str, Any]) -> Any:
        reply = self._replies[number] = _Reply()
        self._write(pack({"id": number, **request}))
        if self.dead is not None:
            self._replies.pop(number, None)
            raise EngineDied(self.dead)
        reply.come.wait()
        if reply.error is not None:
            raise reply.error
        return reply.value

    def _write(self, line: bytes) -> None:
        pipe = self._process.stdin
        with self._lock, contextlib.suppress(OSError, ValueError):  # it died: the listener says why
            if pipe is not None:
                pipe.write(line)
                pipe.flush()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            message = _parse(line)
            if message is None:
                break  # cut short by its death, or not of our making
            self._deliver(message)
        if self.dead is None:
            self._die(EngineDied(self._obituary()))

    def _deliver(self, message: dict[str, Any]) -> None:
        number: Any = message.get("id")
        reply = None if "event" in message else self._replies.pop(number, None)  # events may overtake the reply
        if reply is not None:
            reply.value, reply.error = message.get("value"), _error(message) if "error" in message else None
            reply.come.set()
        elif (sink := self._sinks.get(number)) is not None:
            event = _error(message) if "error" in message else unpack_event(message["event"])
            if isinstance(event, Text):
                self._phase = "writing the answer"
            else:
                self._sinks.pop(number, None)
            sink(event)

    def _die(self, error: BorealisError) -> None:
        """Everybody who waits hears of it."""
        self.dead = str(error)
        while self._replies:
            with contextlib.suppress(KeyError):
                reply = self._replies.pop(next(iter(self._replies)))
                reply.error = error
                reply.come.set()
        while self._sinks:
            with contextlib.suppress(KeyError):
                self._sinks.pop(next(iter(self._sinks)))(error)

    def _obituary(self) -> str:
        returncode = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read(1_000_000).decode("utf-8", "replace").splitlines()
        crash = crash_name(returncode)
        if crash is None:
            said = " ".join(lines[-1:]) or "it said nothing"
            return f"the model's process ended ({returncode}) while {self._phase}: {said}"
        why = next((f": {line.strip()}" for line in lines if "GGML_ASSERT" in line), "")
        hint = "memory may be short" if crash == "SIGKILL" else "this is a fault of llama.cpp or of the model file"
        return f"llama.cpp died ({crash}) while {self._phase}{why}; {hint}"


class _Reply:
    """Where one waits for the answer to a request."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


def _absolute(path: str | Path) -> str:
    """Nothing depends on where the child believes it is."""
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
