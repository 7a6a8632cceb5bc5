"""Settings of the sampler: defaults, ranges, and those that a GGUF brings along (`general.sampling.*`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

from ...checkpoint.types import KV
from ...errors import InvalidInput


class Metadata(Protocol):
    """Finds a metadata entry by its key, as `GGUFFile` does."""

    def find(self, key: str) -> KV | None: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled. The defaults are those of Gemma 3's authors. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}
RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "repeat_last_n": (-1, 2**31 - 1),
    "frequency_penalty": (-100.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
}
OPENAI_RANGES = RANGES | {"temperature": (0.0, 2.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)}
"""What the server takes, as OpenAI's does; the settings of the chat page have the same limits."""


def sampling_from_metadata(metadata: Metadata) -> Sampling:
    """The settings in a GGUF's metadata, over the defaults. Raises InvalidInput for a value out of range."""
    found = {name: entry.value for key, name in KEYS.items() if (entry := metadata.find(key)) is not None}
    return override_sampling(Sampling(), found)


def override_sampling(sampling: Sampling, given: Mapping[str, float]) -> Sampling:
    """`sampling` with the fields in `given` replaced. Raises InvalidInput for an unknown name or a bad value."""
    known = [field.name for field in fields(Sampling)]
    for name, value in given.items():
        if name not in known:
            raise InvalidInput(f"{name}: no such sampling option; there are {', '.join(known)}")
        low, high = RANGES[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidInput(f"{name}: {value!r} is not a number")
        if isinstance(low, int) and value != int(value):
            raise InvalidInput(f"{name}: {value!r} is not a whole number")
        if not low <= value <= high:
            raise InvalidInput(f"{name}: {value!r} is not within {low} and {high}")
    return replace(
        sampling, **{name: int(v) if isinstance(RANGES[name][0], int) else float(v) for name, v in given.items()}
    )
