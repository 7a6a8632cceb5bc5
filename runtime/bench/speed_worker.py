"""Measures one model in this process: a request comes on standard input, samples go to standard output."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BorealisError
from ..answer import Answer, begun
from ..events import Ask, Finished, Options, Text
from ..process.child_process import die_quietly, private_stdout
from ..process.in_process_model import Local
from ..process.model_worker import described
from .answer_timing import random_prompts, reading_speed, together, waiting, writing_speed
from .model_speed import MORE
from .peak_memory import peak_memory

WARM_UP = 8


def main() -> None:
    """Every error is a line to the parent."""
    die_quietly()
    pipe = private_stdout()

    def send(**message: Any) -> None:
        pipe.write(json.dumps(message).encode("ascii") + b"\n")

    try:
        measure(json.loads(sys.stdin.buffer.read()), send)
    except BorealisError as error:
        send(**described(error))
    except MemoryError:
        send(error="out of memory; use a smaller model or fewer at once", code=1)


def measure(request: dict[str, Any], send: Callable[..., None]) -> None:
    """Load, and send a sample for each repetition, then what is known once."""
    from ..model import load

    began = time.perf_counter()
    names = ("device", "gpu_layers", "context", "parallel", "threads")
    model = load(Path(request["path"]), **{name: request[name] for name in names})
    local = model.backend
    if not isinstance(local, Local):
        raise BorealisError("the model must be in this process to be measured")
    loading = time.perf_counter() - began
    try:
        ids = plain_ids(local)
        never_end(local)
        together(asking(local), random_prompts(ids, request["parallel"], MORE, 0), WARM_UP)
        for number in range(1, request["repeats"] + 1):
            send(sample=sample(local, ids, request, number))
    finally:
        model.close()
    send(once={"peak_memory": peak_memory(), "loading": loading, "placement": model.placement})


def sample(local: Local, ids: Sequence[int], request: dict[str, Any], number: int) -> dict[str, float]:
    """One repetition. Its prompts share nothing with those before."""
    ask, count, length = asking(local), request["parallel"], request["prompt_tokens"]
    cold = together(ask, random_prompts(ids, count, length, 4 * number), 1)
    prefix = random_prompts(ids, 1, length, 4 * number + 1)[0]
    ends = random_prompts(ids, count + 1, MORE, 4 * number + 2)
    together(ask, [prefix + ends.pop()], 1)
    shared = together(ask, [prefix + end for end in ends], 1)
    written = together(ask, random_prompts(ids, count, MORE, 4 * number + 3), request["tokens"])
    return {
        "reading": reading_speed(cold), "writing": writing_speed(written),
        "wait": waiting(cold), "wait_shared": waiting(shared),
    }  # fmt: skip


def asking(local: Local, options: Options | None = None) -> Callable[[Sequence[int], int], Iterator[int]]:
    """`timing.Ask` of a model in this process."""
    chosen = options or Options()

    def ask(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        asked = replace(chosen, max_tokens=tokens)
        made = 0
        for event in begun(Answer(asked), lambda sink: local.start(Ask(list(prompt), True, asked), sink)):
            made = event.usage.completion_tokens if isinstance(event, Finished) else made + isinstance(event, Text)
            yield made

    return ask


def plain_ids(local: Local, count: int = 2000) -> list[int]:
    """Some ids that are text."""
    engine = local.engine
    step = max(1, engine.n_vocab // count)
    ids = [id for id in range(0, engine.n_vocab, step) if not (engine.is_control(id) or engine.is_end(id))]
    return [id for id in ids if engine.piece(id)]


def never_end(local: Local) -> None:
    """From now on answers are as long as they may be, for this process only."""
    local.engine.is_end = lambda id: False  # type: ignore[method-assign]
