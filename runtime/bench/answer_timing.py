"""How fast answers come, by the clock of the one who waits for them: the same for an engine and for a server."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

Ask = Callable[[Sequence[int], int], Iterator[int]]
"""Called with a prompt's ids and how many tokens to make; yields how many are made, as news comes, the total last."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer: seconds of a clock when it was asked, when its first and last token came; tokens read and made."""

    begun: float
    first: float
    last: float
    read: int
    made: int

    @property
    def wait(self) -> float:
        """Seconds to the first token."""
        return self.first - self.begun


def timed(ask: Ask, prompt: Sequence[int], tokens: int) -> Timing:
    """Ask, and look at the clock whenever something comes."""
    begun = time.perf_counter()
    first, last, made = 0.0, begun, 0
    for count in ask(prompt, tokens):
        made, last = count, time.perf_counter()
        first = first or last
    return Timing(begun, first or last, last, len(prompt), made)


def together(ask: Ask, prompts: Sequence[Sequence[int]], tokens: int) -> list[Timing]:
    """Ask for all at once, each from a thread of its own."""
    if len(prompts) == 1:
        return [timed(ask, prompts[0], tokens)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: timed(ask, prompt, tokens), prompts))


def writing_speed(timings: Sequence[Timing]) -> float:
    """Tokens per second of all answers together, from the first token on; prompts should be short."""
    seconds = max(t.last for t in timings) - min(t.first for t in timings)
    return sum(t.made - 1 for t in timings) / seconds if seconds > 0 else 0.0


def reading_speed(timings: Sequence[Timing]) -> float:
    """Prompt tokens per second of all answers together, up to the last first token."""
    return sum(t.read for t in timings) / (max(t.first for t in timings) - min(t.begun for t in timings))


def waiting(timings: Sequence[Timing]) -> float:
    """Seconds to the first token, the median."""
    return statistics.median(t.wait for t in timings)


def random_prompts(ids: Sequence[int], count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts that share nothing, made of `ids`."""
    source = random.Random(seed)
    return [source.choices(ids, k=length) for _ in range(count)]
