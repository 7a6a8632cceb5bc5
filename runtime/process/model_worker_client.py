"""Starts the model's process and exchanges messages with it: requests go out, replies and events come back.

A hostile model file may have taken over that process. Whatever it sends or leaves out, every request and every answer
gets an end: a process that sends what is no message is killed, and counts as one that crashed.
"""

import contextlib
import itertools
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from ...errors import BorealisError, Busy, EngineDied, InvalidInput
from ..events import Event, EventSink, ModelInfo, Text, send_event
from .child_process import child_environment, crash_name, kill_at_exit
from .wire_format import pack, unpack_event, unpack_info, unpack_message, unpack_reply

if TYPE_CHECKING:
    from ..llama.loading import LoadProgress

WAIT_SECONDS = 0.1  # on Windows, Ctrl-C does not interrupt a wait without a timeout
DYING_SECONDS = 1.0
"""Time for a process that sent what is no message to end by itself, as after a crash, before it is killed."""
EXIT_SECONDS = 10.0
"""The same for one that ended its output: the driver of a GPU may take its time."""
CLOSE_SECONDS = 2.0
STATS_SECONDS = 1.0
MAX_LINE = 1 << 30
"""Bytes of a message."""


class ModelWorkerClient:
    """One process with a model, from its start to its end. Every method may be called from any thread.

    `ended` is None while the process lives, and then the error that all requests get. A thread of its own reads the
    process's messages, and another one writes: a process that reads nothing blocks no caller.
    """

    def __init__(self, command: Sequence[str], load_message: bytes) -> None:
        """Start the process and have it load its model. Raises BorealisError when it cannot be started."""
        self.ended: BorealisError | None = None
        self.info: ModelInfo | None = None
        self._loaded = threading.Event()
        self._progress: deque[float] = deque()
        self._lock = threading.Lock()
        self._sinks: dict[int, EventSink] = {}
        self._replies: dict[int, _PendingReply] = {}
        self._numbers = itertools.count(1)
        self._late_stats: _PendingReply | None = None
        self._phase = "starting"
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the listener
        self._threads: list[threading.Thread] = []
        self._outgoing.put(load_message)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=child_environment()
            )
        except OSError as error:
            self._stderr.close()
            raise BorealisError(f"the model's process cannot be started ({error.strerror or error})") from error
        kill_at_exit(self._process)
        try:
            self._start_thread("listener", self._listen)
            self._start_thread("writer", self._write)
        except RuntimeError as error:
            self.close()
            raise BorealisError(f"the model's process cannot be listened to ({error})") from error

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"borealis-gguf {name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def wait_until_loaded(self, on_progress: "LoadProgress | None" = None, seconds: float | None = None) -> ModelInfo:
        """What the loaded model offers. Raises why it cannot be loaded, and Busy after `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        loaded = False
        while not loaded:
            loaded = self._loaded.wait(WAIT_SECONDS)
            while on_progress is not None and self._progress:
                on_progress(self._progress.popleft())
            if not loaded and end is not None and time.monotonic() >= end:
                raise Busy("the model's process is being started again; try again in a moment", 5)
        if self.info is None:
            raise self.ended or BorealisError("the model was not loaded")
        return self.info

    def stream(self, request: Mapping[str, Any], sink: EventSink) -> int:
        """Send a request whose events go to `sink`; returns its number. Raises the error that the child replies."""
        number, reply = self._send("start", {"request": request}, sink)
        try:
            reply.wait()
        except BaseException:
            with self._lock:
                self._sinks.pop(number, None)
            self.cancel(number)
            raise
        return number

    def call(self, what: str, *arguments: Any) -> Any:
        """The reply to a request. Raises the error that the child replies."""
        return self._send(what, {"with": arguments})[1].wait()

    def stats(self) -> dict[str, float] | None:
        """The child's statistics; None while it does not reply, which is waited for once, for STATS_SECONDS."""
        late = self._late_stats
        if late is not None and not late.arrived.is_set():
            return None
        _, reply = self._send("stats", {"with": ()})
        if not reply.arrived.wait(STATS_SECONDS):
            self._late_stats = reply
            return None
        return reply.wait()

    def cancel(self, number: int) -> None:
        """Cancel an answer, which may have ended already. Takes no lock."""
        self._outgoing.put(pack({"id": number, "do": "cancel"}))

    def kill(self) -> None:
        """End the process and all that waits for it; its threads end soon after. A second call does nothing."""
        self._end(BorealisError("the model is closed"))
        self._kill()

    def close(self) -> None:
        """As `kill`; waits for the threads, which close the pipes."""
        self.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSE_SECONDS)

    def _send(self, what: str, fields: Mapping[str, Any], sink: EventSink | None = None) -> "tuple[int, _PendingReply]":
        reply, number = _PendingReply(what), next(self._numbers)
        line = pack({"id": number, "do": what, **fields})
        with self._lock:
            if self.ended is not None:
                raise self.ended
            self._replies[number] = reply
            if sink is not None:
                self._phase = self._phase if self._sinks else "reading the prompt"
                self._sinks[number] = sink
        self._outgoing.put(line)
        return number, reply

    # The methods below run in the two threads.

    def _write(self) -> None:
        try:
            with self._process.stdin as pipe:  # type: ignore[union-attr]
                while (line := self._outgoing.get()) is not None:
                    pipe.write(line)
                    pipe.flush()
        except (OSError, ValueError):
            self._kill()  # it reads no more; the listener tells why

    def _listen(self) -> None:
        """Deliver the child's messages until it ends or sends what is none; then end all that waits for it."""
        line = problem = b""
        try:
            with self._process.stdout as pipe:  # type: ignore[union-attr]
                while line := pipe.readline(MAX_LINE):
                    self._deliver(unpack_message(line))
        except Exception:  # truncated by a crash, or from a process that something else has taken over
            problem = line
        error = self._death(problem)
        self._stderr.close()
        self._outgoing.put(None)
        self._end(error)

    def _deliver(self, message: Mapping[str, Any]) -> None:
        """Raises whatever Python raises for what is no message of this package."""
        number = message.get("id")
        if number is None:
            self._deliver_loading(message)
        elif "event" in message:  # events may arrive before the reply
            self._deliver_event(number, unpack_event(message["event"]))
        elif (reply := self._replies.get(number)) is not None:
            error = _error(message) if "error" in message else None
            reply.set(None if error else unpack_reply(reply.what, message["value"]), error)
            self._replies.pop(number, None)
        elif "error" in message:
            self._deliver_event(number, _error(message))

    def _deliver_loading(self, message: Mapping[str, Any]) -> None:
        if "progress" in message:
            self._phase = "loading the model"
            self._progress.append(float(message["progress"]))
        elif "error" in message:
            self._end(_error(message))
        else:
            self.info = unpack_info(message["ready"])
            self._loaded.set()

    def _deliver_event(self, number: int, event: Event | BaseException) -> None:
        if isinstance(event, Text):
            self._phase = "writing the answer"
            sink = self._sinks.get(number)
        else:
            sink = self._sinks.pop(number, None)
        error = None if sink is None else send_event(sink, event)
        if error is not None and (sink := self._sinks.pop(number, None)) is not None:
            send_event(sink, BorealisError(f"the receiver of the answer's events failed: {error!r}"))
            self.cancel(number)

    def _end(self, error: BorealisError) -> None:
        """End all pending requests and answers, and those to come, with `error`; unless they ended before."""
        with self._lock:
            self.ended = self.ended or error
            replies, sinks = list(self._replies.values()), list(self._sinks.values())
            self._replies.clear()
            self._sinks.clear()
        for reply in replies:
            reply.set(None, error)
        for sink in sinks:
            send_event(sink, error)
        self._loaded.set()

    def _death(self, problem: bytes) -> EngineDied:
        """What ended the process, or what it sent when it did not end by itself."""
        try:
            returncode = self._process.wait(DYING_SECONDS if problem.endswith(b"\n") else EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            seen = f"sent what is no message: {ascii(problem[:80])[2:-1]}" if problem else "closed its output"
            return EngineDied(f"the model's process was ended while {self._phase}: it {seen}")
        self._stderr.seek(0)
        lines = self._stderr.read(1_000_000).decode("utf-8", "replace").splitlines()
        crash = crash_name(returncode)
        if crash is None:
            last_line = " ".join(lines[-1:]) or "it said nothing"
            return EngineDied(f"the model's process ended ({returncode}) while {self._phase}: {last_line}")
        assertion = next((f": {line.strip()}" for line in lines if "GGML_ASSERT" in line), "")
        hint = "memory may be short" if crash == "SIGKILL" else "this is a fault of llama.cpp or of the model file"
        return EngineDied(f"llama.cpp died ({crash}) while {self._phase}{assertion}; {hint}")

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)


class _PendingReply:
    """Set by the listener thread when the reply to a request arrives; `what` was requested."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.arrived = threading.Event()
        self.value: Any = None
        self.error: BorealisError | None = None

    def set(self, value: Any, error: BorealisError | None) -> None:
        self.value, self.error = value, error
        self.arrived.set()

    def wait(self) -> Any:
        """The reply, once it has arrived. Raises the error that came instead."""
        while not self.arrived.wait(WAIT_SECONDS):
            pass
        if self.error is not None:
            raise self.error
        return self.value


def _error(message: Mapping[str, Any]) -> BorealisError:
    if message.get("retry_after"):
        return Busy(str(message["error"]), int(message["retry_after"]))
    kind = InvalidInput if message.get("code") == InvalidInput.exit_code else BorealisError
    return kind(str(message["error"]))
