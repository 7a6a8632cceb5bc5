"""Settings of the sampler: defaults, ranges, and those that a GGUF brings along (`general.sampling.*`)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

from ...checkpoint.types import KV
from ...errors import InvalidInput
from ...sampling_ranges import KEYS, RANGES, sampling_fault


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
        if fault := sampling_fault(name, value):
            raise InvalidInput(f"{name}: {fault}")
    return replace(
        sampling, **{name: int(v) if isinstance(RANGES[name][0], int) else float(v) for name, v in given.items()}
    )
