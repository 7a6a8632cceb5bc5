"""Measures how fast a model runs here. Every measurement is a child process, which reports its peak memory."""

import contextlib
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
from ..process.child_process import child_command, child_environment, crash_name
from ..process.wire_format import unpack_message

SHORT_PROMPT = 16
"""Tokens after a shared prefix, and of the prompts before decoding is measured."""
WORKER = f"{__package__}.speed_worker"


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """Speed of `parallel` answers at once: `prefill` and `decode` in tokens per second of all together.

    Times are in seconds, `peak_memory` in bytes. time_to_first_token: after a new prompt; time_to_first_token_cached:
    after a prompt of which all but the last tokens are in the KV cache. placement: as `Placement.describe`.
    """

    parallel: int
    prefill: float
    decode: float
    time_to_first_token: float
    time_to_first_token_cached: float
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
) -> Iterator[ModelSpeed]:
    """One `ModelSpeed` for each of `parallel`, medians of `repeats`. Raises what loading raises.

    All answers have `tokens` tokens: end tokens are ignored. `context` None is the least that is needed.
    """
    needed = max(prompt_tokens + SHORT_PROMPT + 2, SHORT_PROMPT + tokens + 2)
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


def _measured(request: Mapping[str, Any], on_progress: Callable[[str, float], None] | None) -> ModelSpeed:
    samples: list[dict[str, float]] = []
    totals: dict[str, Any] = {}
    label = f"{request['parallel']} at once"
    for message in _messages(request):
        if "sample" in message:
            samples.append(message["sample"])
            if on_progress is not None:
                on_progress(label, len(samples) / request["repeats"])
        elif "totals" in message:
            totals |= message["totals"]
    if not (samples and totals):
        raise EngineDied(f"{request['path']}: the measuring process ended before it had measured")
    medians = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return ModelSpeed(request["parallel"], **medians, **totals)


def _messages(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages of the child until it ends. Raises the error that it sends, EngineDied when it crashes."""
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        child_command(WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=child_environment()
    ) as process:  # fmt: skip
        try:
            with contextlib.suppress(OSError), process.stdin as pipe:  # type: ignore[union-attr] # it may have died
                pipe.write(json.dumps(request).encode("ascii"))
            for line in process.stdout or ():
                if not line.endswith(b"\n"):
                    break  # truncated by a crash
                message = _message(line, request["path"])
                if "error" in message:
                    kind = InvalidInput if message.get("code") == InvalidInput.exit_code else BorealisError
                    raise kind(message["error"])
                yield message
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            last_line = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            crash = crash_name(process.returncode) or process.returncode
            raise EngineDied(f"{request['path']}: the measuring process died ({crash}): {' '.join(last_line)}")


def _message(line: bytes, path: str) -> dict[str, Any]:
    try:
        return unpack_message(line)
    except ValueError:
        seen = ascii(line[:80])[2:-1]
        raise EngineDied(f"{path}: the measuring process sent what is no message: {seen}") from None
