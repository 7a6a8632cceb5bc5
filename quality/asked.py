"""A question to the child that tokenizes, under way while other work is done."""

import contextlib
import json
import subprocess
import threading
from typing import Any

from ..errors import BorealisError
from ..runtime.child import child_command, crash_name
from .remembered import keep, recall

WORKER = f"{__package__}.worker"


class Asked:
    """A request that `worker` is answering. `close()` ends the child, whether it has answered or not."""

    def __init__(self, request: dict[str, Any], what: str, key: str = "") -> None:
        """`what` is going on, for the message when the child dies. With a `key`, the answer is kept under it; one that
        is there already is the answer, and no child is started.
        """
        self.what, self.key = what, key
        self._output = b"", b""
        self._known = recall(key) if key else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._known is None:
            self._process = subprocess.Popen(
                child_command(WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            data = json.dumps(request).encode("ascii")
            self._thread = threading.Thread(target=self._talk, args=(self._process, data), name="asked")
            self._thread.start()

    def _talk(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was ended
            self._output = process.communicate(data)

    def answer(self) -> dict[str, Any]:
        """The answer. Raises BorealisError when there is none, saying why."""
        if self._known is None:
            self._known = self._heard()
            if self.key and not self._known.get("missing"):
                keep(self.key, self._known)
        return self._known

    def _heard(self) -> dict[str, Any]:
        """What the child has said, once it has ended."""
        if self._process is None:
            return {}
        self._thread.join()
        code, (out, complaints) = self._process.returncode, self._output
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
        if self._process is not None:
            self._process.kill()
            self._thread.join()
            self._process.wait()
