"""Times answers from the client's side, the same for an engine and for a server: prefill, first token, decode."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

Generate = Callable[[Sequence[int], int], Iterator[int]]
"""Called with a prompt's ids and how many tokens to generate; yields the number generated so far, the total last."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer: clock seconds at its start, first and last token, and tokens of the prompt and the answer."""

    started: float
    first: float
    last: float
    prompt_tokens: int
    generated_tokens: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the start to the first token."""
        return self.first - self.started


def timed_answer(generate: Generate, prompt: Sequence[int], tokens: int) -> Timing:
    """Generate one answer, and read the clock whenever a token arrives."""
    started = time.perf_counter()
    first, last, generated = 0.0, started, 0
    for count in generate(prompt, tokens):
        generated, last = count, time.perf_counter()
        first = first or last
    return Timing(started, first or last, last, len(prompt), generated)


def timed_concurrently(generate: Generate, prompts: Sequence[Sequence[int]], tokens: int) -> list[Timing]:
    """Generate the answers to all prompts at once, each from a thread of its own."""
    if len(prompts) == 1:
        return [timed_answer(generate, prompts[0], tokens)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: timed_answer(generate, prompt, tokens), prompts))


def decode_rate(timings: Sequence[Timing]) -> float:
    """Tokens per second of all answers together, from the first token on; prompts should be short."""
    seconds = max(t.last for t in timings) - min(t.first for t in timings)
    return sum(t.generated_tokens - 1 for t in timings) / seconds if seconds > 0 else 0.0


def prefill_rate(timings: Sequence[Timing]) -> float:
    """Prompt tokens per second of all answers together, up to the last answer's first token."""
    return sum(t.prompt_tokens for t in timings) / (max(t.first for t in timings) - min(t.started for t in timings))


def median_time_to_first_token(timings: Sequence[Timing]) -> float:
    """Seconds to the first token, the median of all answers."""
    return statistics.median(t.time_to_first_token for t in timings)


def random_prompts(ids: Sequence[int], count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of random `ids`, which share no prefix."""
    source = random.Random(seed)
    return [source.choices(ids, k=length) for _ in range(count)]
