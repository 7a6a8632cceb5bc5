"""Renders a chat template in a process of its own, which is ended when it takes too much time or memory."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from ...errors import BorealisError, InvalidInput
from ..process.child_process import child_command, child_environment, crash_name
from .chat_template import ChatTemplate, Message, Rendering, Segment
from .template_worker import OUT_OF_MEMORY, pack, unpack

WORKER = f"{__package__}.template_worker"
MAX_PROCESSOR_SECONDS = 0.5
"""For one request, without waiting. Honest ones take milliseconds, and 40 for a million characters."""
MAX_SECONDS = 10.0
"""For one request by the clock; the process ends itself then, also when nobody watches it any more."""
MAX_SECONDS_WITH_START = 60.0
MAX_MEMORY = 160 << 20
"""Bytes. Enough for a conversation of four million characters of any script."""
POLL_SECONDS = 0.02

ADVICE = "it is broken or hostile; correct it, or get the model from a source you trust"
TOO_SLOW = f"the model's chat template takes longer than {MAX_PROCESSOR_SECONDS:g} s to render: {ADVICE}"
TOO_LARGE = f"the model's chat template needs more than {MAX_MEMORY >> 20} MB to render: {ADVICE}"


class TemplateRenderer:
    """One chat template and the process that renders it. Every method may be called from any thread.

    Use it in a `with`, or close it. The process starts at once, and again after it was ended; it ends with its parent.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._lock = threading.Lock()
        self._closed = False
        self._process: _TemplateProcess | None = _TemplateProcess()

    def __enter__(self) -> "TemplateRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        with self._lock:
            self._closed = True
            self._end_process()

    def render_each(self, conversations: Sequence[Sequence[Message]]) -> list[Rendering]:
        """Each conversation as the template renders it. Raises InvalidInput when all of them together take too much."""
        return [Rendering(*fields) for fields in self._ask("render_each", conversations=conversations)]

    def render_segments(self, messages: Sequence[Message]) -> tuple[str, list[Segment]]:
        """The prompt as text, up to and including the opening of the model's turn, and the same text in segments.

        Raises InvalidInput when the template refuses the conversation, is broken, or takes too much time or memory.
        """
        text, found = self._ask("render_segments", messages=messages)
        segments = [Segment(*fields) for fields in found]
        return "".join(segment.text for segment in segments) if text is None else text, segments

    def _ask(self, task: str, **arguments: Any) -> Any:
        try:
            request = pack({"task": task, "template": astuple(self.template), **arguments})
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"a message holds what JSON cannot ({error})") from error
        with self._lock:
            answer = unpack(self._exchange(request))
        if "error" in answer:
            raise InvalidInput(answer["error"])
        return answer["value"]

    def _exchange(self, request: bytes) -> bytes:
        if self._closed:
            raise BorealisError("the model is closed")
        if self._process is None or self._process.ended():
            self._end_process()
            self._process = _TemplateProcess()
        try:
            return self._process.exchange(request)
        except BaseException:  # Ctrl-C, too: this answer must not be taken for that to the next request
            self._end_process()
            raise

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _TemplateProcess:
    """A running `template_worker`."""

    def __init__(self) -> None:
        self._ready, self._answer = False, b""
        pipe = subprocess.PIPE
        command = child_command(WORKER, str(MAX_MEMORY), str(MAX_SECONDS))
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=child_environment()
            )
        except OSError as error:
            raise BorealisError(
                f"the process that renders chat templates cannot be started ({error.strerror or error})"
            ) from error

    def ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet
                pipe.close()  # type: ignore[union-attr]

    def exchange(self, request: bytes) -> bytes:
        """The line that answers `request`. Raises InvalidInput when the process takes too much, or dies.

        A thread writes and reads, so that this one can watch the process, and Ctrl-C reaches it on every system.
        """
        thread = threading.Thread(target=self._write_and_read, args=(request,), name="chat template", daemon=True)
        thread.start()
        thread.join(POLL_SECONDS)
        if thread.is_alive():
            self._watch(thread)
        if not self._answer.endswith(b"\n"):
            raise InvalidInput(self._reason_of_death())
        return self._answer

    def _write_and_read(self, request: bytes) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        self._answer = b""
        with contextlib.suppress(OSError, ValueError):  # it died or was ended
            self._ready = self._ready or bool(stdout.readline())  # type: ignore[union-attr]
            stdin.write(request)  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]
            self._answer = stdout.readline()  # type: ignore[union-attr]

    def _watch(self, thread: threading.Thread) -> None:
        """Wait for `thread`. Raises InvalidInput when the process takes too much meanwhile; starting it is free."""
        import psutil

        deadline, before = time.monotonic() + MAX_SECONDS_WITH_START, None
        while thread.is_alive():
            with contextlib.suppress(psutil.Error):  # it just ended
                process = psutil.Process(self._process.pid)
                used = sum(process.cpu_times()[:2])
                before = used if before is None or not self._ready else before
                if used - before > MAX_PROCESSOR_SECONDS or time.monotonic() > deadline:
                    raise InvalidInput(TOO_SLOW)
                if process.memory_info().rss > MAX_MEMORY:
                    raise InvalidInput(TOO_LARGE)
            thread.join(POLL_SECONDS)

    def _reason_of_death(self) -> str:
        code = self._process.wait()
        if code == OUT_OF_MEMORY:
            return TOO_LARGE
        crash = crash_name(code) or f"exit code {code}"
        return f"the model's chat template ended the process that renders it ({crash}): {ADVICE}"
