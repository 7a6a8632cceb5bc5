"""What defines one architecture for the cross check: its settings, and the names of its weights on both sides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Settings = Mapping[str, Any]
"""A model's settings by transformers' names; None for a setting that it does not have."""


@dataclass(frozen=True, slots=True)
class AxisOrder:
    """`rows(n, settings)` are the checkpoint's rows (int64 [n]) in the GGUF's order, which `text` describes."""

    text: str
    rows: Callable[[int, Settings], np.ndarray]


@dataclass(frozen=True, slots=True)
class Weight:
    """One kind of module, `{}` for the block: its name in the checkpoint, without what wraps the model, and in GGUF.

    It stands for the module's weight and, if it has one, its bias. The model adds `add` to a weight before it
    multiplies by it.
    """

    checkpoint: str
    gguf: str
    add: float = 0.0
    order: AxisOrder | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """One architecture. `keys` maps GGUF keys, without `prefix`, to names in the result of `read_settings(config)`."""

    architecture: str
    prefix: str
    read_settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    keys: Mapping[str, str]
    weights: tuple[Weight, ...]
    block_count: str = "num_hidden_layers"


def config_part(values: Settings, name: str) -> Mapping[str, Any]:
    """An object inside a configuration; empty where there is none."""
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}
