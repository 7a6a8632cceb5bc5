"""Talking to a model in a child process: whatever happens in native code, the caller gets text or one clear error.

The child (`worker`) sends one JSON object a line: {"phase": …}, {"text": …}, and last {"end": true} or {"error": …}.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import BorealisError, InvalidInput
from .child import child_command, crash_name

if TYPE_CHECKING:
    from .template import Message

WORKER = f"{__package__}.worker"


def run(
    model: str | Path,
    prompt: "str | Sequence[Message]",
    *,
    raw: bool = False,
    max_tokens: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    sampling: Mapping[str, float] | None = None,
    gpu_layers: int = -1,
    loras: Sequence[tuple[str | Path, float]] = (),
    mmproj: str | Path | None = None,
    command: Sequence[str] | None = None,
) -> Generator[str, None, None]:
    """The answer to `prompt`, in pieces, from a model that lives in a child process while the iterator does.

    The arguments are those of `load` and `Model.stream`; `command` replaces the child's command line. Raises what
    they raise, and BorealisError, naming what was going on, when the child dies.
    """
    loading = {"context": context, "threads": threads, "seed": seed, "sampling": sampling, "gpu_layers": gpu_layers}
    loading["loras"] = [(str(Path(path).absolute()), scale) for path, scale in loras]
    loading["mmproj"] = str(Path(mmproj).absolute()) if mmproj else None
    asking = {"prompt": prompt, "raw": raw, "max_tokens": max_tokens}
    # An absolute path: nothing depends on where the child believes it is.
    request = json.dumps({"model": str(Path(model).absolute()), "load": loading, "stream": asking}, default=dict)
    with tempfile.TemporaryFile() as complaints:
        yield from _talk(command or child_command(WORKER), request, complaints)


def _talk(command: Sequence[str], request: str, complaints: IO[bytes]) -> Generator[str, None, None]:
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
    try:
        with contextlib.suppress(BrokenPipeError):  # it died already: its end says why
            _send(child, request)
        phase = "starting"
        for line in child.stdout or ():
            event = _parse(line)
            if event is None:  # the line was cut short by the child's death
                break
            if "error" in event:
                raise (InvalidInput if event["code"] == InvalidInput.exit_code else BorealisError)(event["error"])
            if "end" in event:
                return
            phase = event.get("phase", phase)
            if "text" in event:
                yield event["text"]
        raise BorealisError(_obituary(child.wait(), phase, complaints))
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _send(child: "subprocess.Popen[bytes]", request: str) -> None:
    if child.stdin is not None:
        with child.stdin as pipe:
            pipe.write(request.encode("ascii"))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _obituary(returncode: int, phase: str, complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read(1_000_000).decode("utf-8", "replace").splitlines()
    crash = crash_name(returncode)
    if crash is None:
        return f"the model's process ended ({returncode}) while {phase}: {' '.join(lines[-1:]) or 'it said nothing'}"
    why = next((f": {line.strip()}" for line in lines if "GGML_ASSERT" in line), "")
    hint = "memory may be short" if crash == "SIGKILL" else "this is a fault of llama.cpp or of the model file"
    return f"llama.cpp died ({crash}) while {phase}{why}; {hint}"
