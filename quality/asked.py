"""A question to the child that tokenizes, under way while other work is done."""

import contextlib
import json
import subprocess
import threading
from typing import Any

from ..errors import BorealisError
from ..runtime.child import child_command, crash_name

WORKER = f"{__package__}.worker"


class Child:
    """The process, which may be started before it is known what it will be asked."""

    def __init__(self, *ahead: str) -> None:
        """`ahead` is what to open meanwhile: "gguf" (llama.cpp itself), or the path of a tokenizer.json."""
        self.process = subprocess.Popen(
            child_command(WORKER, *ahead),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows'; elsewhere see `worker`
        )

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.communicate()


class Asked:
    """A request that `worker` is answering. `close()` ends the child, whether it has answered or not."""

    def __init__(self, request: dict[str, Any], what: str, child: Child | None = None) -> None:
        """`what` is going on, for the message when the child dies. `child` is one that has been started, now ours."""
        self.what = what
        self._output = b"", b""
        self._known: dict[str, Any] | None = None
        self._process = (child or Child()).process
        self._thread = threading.Thread(target=self._talk, args=(json.dumps(request).encode("ascii"),), name="asked")
        self._thread.start()

    def _talk(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was ended
            self._output = self._process.communicate(data)

    def answer(self) -> dict[str, Any]:
        """The answer. Raises BorealisError when there is none, saying why."""
        if self._known is None:
            self._known = self._heard()
        return self._known

    def _heard(self) -> dict[str, Any]:
        """What the child has said, once it has ended."""
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
        self._process.kill()
        self._thread.join()
        self._process.wait()
