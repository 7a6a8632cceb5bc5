"""A request to the worker process (see `worker`), answered while other work goes on."""

import contextlib
import json
import subprocess
import threading
from typing import Any

from ..errors import BorealisError
from ..runtime.process.child_process import child_command, crash_name

WORKER = f"{__package__}.check_worker"
TIME_LIMIT = 120.0
"""Seconds. A vocabulary of 262144 tokens takes 3 on a busy machine; a hostile regular expression takes for ever."""


class PendingRequest:
    """A request that a worker process of its own is answering. `close()` ends that process, answered or not."""

    def __init__(self, request: dict[str, Any], what: str, seconds: float | None = TIME_LIMIT) -> None:
        """`what` is being done, for error messages. After `seconds` the worker is killed; None waits for ever."""
        self.what, self.seconds = what, seconds
        self._output = b"", b""
        self._late = False
        self._result: dict[str, Any] | None = None
        self._process = subprocess.Popen(
            child_command(WORKER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows'; elsewhere see `worker`
        )
        self._thread = threading.Thread(target=self._talk, args=(json.dumps(request).encode("ascii"),), name="worker")
        self._thread.start()

    def _talk(self, data: bytes) -> None:
        try:
            self._output = self._process.communicate(data, self.seconds)
        except subprocess.TimeoutExpired:
            self._late = True
            self._process.kill()
            self._process.communicate()
        except (OSError, ValueError):  # it was closed
            pass

    def result(self) -> dict[str, Any]:
        """The answer, waiting for it. Raises BorealisError when there is none, saying why."""
        if self._result is None:
            self._result = self._read_answer()
        return self._result

    def _read_answer(self) -> dict[str, Any]:
        self._thread.join()
        code, (out, complaints) = self._process.returncode, self._output
        if self._late:
            raise BorealisError(f"while {self.what}, no answer came within {self.seconds:.0f} s")
        if code:
            last = complaints.decode("utf-8", "replace").strip().splitlines()[-1:]
            crash = crash_name(code)
            how = f"the process died ({crash})" if crash else f"the process ended ({code}): {' '.join(last)}"
            raise BorealisError(f"while {self.what}, {how}")
        answer = json.loads(out)
        if "error" in answer:
            raise BorealisError(answer["error"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._thread.join()
        self._process.wait()
