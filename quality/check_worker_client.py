"""Sends requests to worker processes (see `check_worker`), whose answers arrive while other work goes on."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from ..errors import BorealisError
from ..runtime.process.child_process import child_command, child_environment, crash_name

WORKER = f"{__package__}.check_worker"
TIME_LIMIT = 120.0
"""Seconds. A vocabulary of 262144 tokens takes 3 on a busy machine; a hostile expression never ends."""


class PendingRequest:
    """A request that a worker process of its own is answering. `close()` ends that process, answered or not."""

    def __init__(self, task: str, activity: str, arguments: Mapping[str, Any], *, time_limit: bool = True) -> None:
        """`task` is a key of the worker's TASKS, `arguments` are the task's; `activity` is for error messages: "while
        {activity}, no answer came". The worker is killed after TIME_LIMIT, unless `time_limit` is False.
        """
        self.activity, self.seconds = activity, TIME_LIMIT if time_limit else None
        self._output = b"", b""
        self._timed_out = False
        self._result: dict[str, Any] | None = None
        self._process = subprocess.Popen(
            child_command(WORKER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows; elsewhere the worker's nice
        )
        data = json.dumps({"task": task, **arguments}).encode("ascii")
        self._thread = threading.Thread(target=self._communicate, args=(data,), name="worker")
        self._thread.start()

    def _communicate(self, data: bytes) -> None:
        try:
            self._output = self._process.communicate(data, self.seconds)
        except subprocess.TimeoutExpired:
            self._timed_out = True
            self._process.kill()
            self._process.communicate()
        except (OSError, ValueError):  # it was closed
            pass

    def result(self) -> dict[str, Any]:
        """Wait for the answer. Raises BorealisError, saying why, when there is none."""
        if self._result is None:
            self._result = self._read_answer()
        return self._result

    def _read_answer(self) -> dict[str, Any]:
        self._thread.join()
        code, (stdout, stderr) = self._process.returncode, self._output
        if self._timed_out:
            raise BorealisError(f"while {self.activity}, no answer came within {self.seconds:.0f} s")
        if code:
            last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            crash = crash_name(code)
            how = f"the process died ({crash})" if crash else f"the process ended ({code}): {' '.join(last)}"
            raise BorealisError(f"while {self.activity}, {how}")
        try:
            answer = json.loads(stdout)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            seen = ascii(stdout[:80])[2:-1]
            raise BorealisError(f"while {self.activity}, the process sent what is no answer: {seen}")
        if "error" in answer:
            raise BorealisError(answer["error"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._thread.join()
        self._process.wait()
