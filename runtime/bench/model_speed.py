"""How fast a model runs on this machine. Every measurement has a process of its own, which tells its peak memory."""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BorealisError, EngineDied, InvalidInput
from ..find import find_model
from ..process.child_process import child_command, crash_name

MORE = 16
"""Tokens after a shared prefix, and of the short prompts that writing begins with."""
CHILD = f"{__package__}.speed_worker"


@dataclass(frozen=True, slots=True)
class Speed:
    """Of `parallel` answers at once: tokens per second of all together, seconds to the first token, bytes.

    `wait` is for a prompt never seen before, `wait_shared` for one of which all but the last tokens are known.
    placement: where the model was put, and why, in one line.
    """

    parallel: int
    reading: float
    writing: float
    wait: float
    wait_shared: float
    peak_memory: int
    loading: float
    placement: str


def bench_run(
    model: str | Path,
    *,
    prompt_tokens: int = 512,
    tokens: int = 128,
    parallel: Sequence[int] = (1, 8),
    repeats: int = 3,
    threads: int | None = None,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    on_progress: Callable[[str, float], None] | None = None,
) -> Iterator[Speed]:
    """One `Speed` for each of `parallel`, medians of `repeats`. Raises what loading raises.

    The answers are as long as asked for: an end that the model chooses is not heeded. `context` None is what is needed.
    """
    needed = max(prompt_tokens + MORE + 2, MORE + tokens + 2)
    if context is not None and context < needed:
        raise InvalidInput(f"a context of {context} tokens; {needed} are needed for this measurement")
    path = find_model(model)
    for count in parallel:
        request = {
            "path": str(path.absolute()), "parallel": count, "prompt_tokens": prompt_tokens, "tokens": tokens,
            "repeats": repeats, "threads": threads, "context": context or needed, "device": device,
            "gpu_layers": gpu_layers,
        }  # fmt: skip
        yield _measured(request, on_progress)


def _measured(request: Mapping[str, Any], on_progress: Callable[[str, float], None] | None) -> Speed:
    samples: list[dict[str, float]] = []
    once: dict[str, Any] = {}
    what = f"{request['parallel']} at once"
    for message in _messages(request):
        if "sample" in message:
            samples.append(message["sample"])
            if on_progress is not None:
                on_progress(what, len(samples) / request["repeats"])
        elif "once" in message:
            once |= message["once"]
    if not (samples and once):
        raise EngineDied(f"{request['path']}: the measuring process ended before it had measured")
    middle = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return Speed(request["parallel"], **middle, **once)


def _messages(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the child tells, to its end. Raises what it reports, EngineDied when it dies."""
    with tempfile.TemporaryFile() as complaints, subprocess.Popen(
        child_command(CHILD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints
    ) as process:  # fmt: skip
        try:
            if process.stdin is not None:
                process.stdin.write(json.dumps(request).encode("ascii"))
                process.stdin.close()
            for line in process.stdout or ():
                message = json.loads(line)
                if "error" in message:
                    kind = InvalidInput if message["code"] == InvalidInput.exit_code else BorealisError
                    raise kind(message["error"])
                yield message
        except BaseException:
            process.kill()
            raise
        if process.wait():
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            why = crash_name(process.returncode) or process.returncode
            raise EngineDied(f"{request['path']}: the measuring process died ({why}): {' '.join(said)}")
