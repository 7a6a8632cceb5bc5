"""Measures one model in a child process: reads the request from standard input, writes samples to standard output."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BorealisError
from ..answer import Answer, start_answer
from ..events import Finished, GenerationRequest, Options, Text
from ..process.child_process import die_quietly, private_stdout
from ..process.in_process_model import InProcessModel
from ..process.model_worker import error_message
from .answer_timing import (
    Generate,
    decode_rate,
    median_time_to_first_token,
    prefill_rate,
    random_prompts,
    timed_concurrently,
)
from .model_speed import SHORT_PROMPT
from .peak_memory import peak_memory

WARM_UP_TOKENS = 8


def main() -> None:
    """Measure as requested; every error is sent to the parent."""
    die_quietly()
    pipe = private_stdout()

    def send(**message: Any) -> None:
        pipe.write(json.dumps(message).encode("ascii") + b"\n")

    try:
        measure(json.loads(sys.stdin.buffer.read()), send)
    except BorealisError as error:
        send(**error_message(error))
    except MemoryError:
        send(error="out of memory; use a smaller model or fewer at once", code=1)


def measure(request: dict[str, Any], send: Callable[..., None]) -> None:
    """Load the model, send a sample for each repetition, then the totals."""
    from ..model import load

    started = time.perf_counter()
    names = ("device", "gpu_layers", "context", "parallel", "threads")
    model = load(Path(request["path"]), **{name: request[name] for name in names})
    local = model.backend
    if not isinstance(local, InProcessModel):
        raise BorealisError("the model must be in this process to be measured")
    loading = time.perf_counter() - started
    try:
        ids = text_token_ids(local)
        disable_end_tokens(local)
        timed_concurrently(
            generator_of(local), random_prompts(ids, request["parallel"], SHORT_PROMPT, 0), WARM_UP_TOKENS
        )
        for number in range(1, request["repeats"] + 1):
            send(sample=sample(local, ids, request, number))
    finally:
        model.close()
    send(totals={"peak_memory": peak_memory(), "loading": loading, "placement": model.placement})


def sample(local: InProcessModel, ids: Sequence[int], request: dict[str, Any], number: int) -> dict[str, float]:
    """Measure once, with prompts that share no prefix with those before."""
    generate, count, length = generator_of(local), request["parallel"], request["prompt_tokens"]
    new = timed_concurrently(generate, random_prompts(ids, count, length, 4 * number), 1)
    prefix = random_prompts(ids, 1, length, 4 * number + 1)[0]
    ends = random_prompts(ids, count + 1, SHORT_PROMPT, 4 * number + 2)
    timed_concurrently(generate, [prefix + ends.pop()], 1)
    cached = timed_concurrently(generate, [prefix + end for end in ends], 1)
    decoded = timed_concurrently(generate, random_prompts(ids, count, SHORT_PROMPT, 4 * number + 3), request["tokens"])
    return {
        "prefill": prefill_rate(new), "decode": decode_rate(decoded),
        "time_to_first_token": median_time_to_first_token(new),
        "time_to_first_token_cached": median_time_to_first_token(cached),
    }  # fmt: skip


def generator_of(local: InProcessModel, options: Options | None = None) -> Generate:
    """`answer_timing.Generate` for a model in this process."""
    chosen = options or Options()

    def generate(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        request = GenerationRequest(list(prompt), True, replace(chosen, max_tokens=tokens))
        count = 0
        for event in start_answer(Answer(request.options), lambda sink: local.start(request, sink)):
            count = event.usage.completion_tokens if isinstance(event, Finished) else count + isinstance(event, Text)
            yield count

    return generate


def text_token_ids(local: InProcessModel, count: int = 2000) -> list[int]:
    """Up to about `count` ids of ordinary tokens."""
    engine = local.engine
    step = max(1, engine.n_vocab // count)
    ids = [id for id in range(0, engine.n_vocab, step) if not (engine.is_control(id) or engine.is_end(id))]
    return [id for id in ids if engine.piece(id)]


def disable_end_tokens(local: InProcessModel) -> None:
    """Make answers of this model as long as `max_tokens` allows."""
    local.engine.is_end = lambda id: False  # type: ignore[method-assign]
