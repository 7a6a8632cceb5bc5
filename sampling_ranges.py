"""Which sampling settings a GGUF can hold for our own runs, and their ranges: converting and running both ask here."""

import math
import struct
from typing import Any

KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}
"""The setting that each metadata key holds."""

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


def sampling_fault(name: str, value: Any) -> str | None:
    """What is wrong with `value` for the setting `name`, to follow its name in a message; None when it is fine."""
    low, high = RANGES[name]
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        return f"{value!r} is not a number"
    if isinstance(low, int) and value != int(value):
        return f"{value!r} is not a whole number"
    if not low <= value <= high and value != _float32(low):
        return f"{value!r} is not within {low} and {high}"
    return None


def _float32(value: float) -> float:
    """`value` as a GGUF holds it."""
    return struct.unpack("<f", struct.pack("<f", value))[0]
