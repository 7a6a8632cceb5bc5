"""What a reader of files hands on: arrays that exist, and metadata entries. Plain data, no I/O."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType


@dataclass(frozen=True, slots=True)
class Remote:
    """A file that lies elsewhere, as it was when its revision was pinned: `etag` changes when its bytes do.

    `label` is what it is called in messages; `url` never holds a token. `copies` are addresses that `url` has led to,
    each with an ETag of its own.
    """

    repo_id: str
    label: str
    url: str
    size: int
    etag: str
    copies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """One row-major array in a file: `shape` as in a checkpoint (the last axis is the row), bytes from `offset`.

    `type` is BF16, F16 or F32 in a checkpoint; a GGUF may hold any type. With `remote`, the bytes lie there, and `path`
    is only a name for messages.
    """

    path: Path
    offset: int
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    remote: Remote | None = None

    @property
    def nbytes(self) -> int:
        return row_nbytes(self.type, self.shape[-1]) * prod(self.shape[:-1]) if self.shape else row_nbytes(self.type, 1)


@dataclass(frozen=True, slots=True)
class KV:
    """One GGUF metadata entry. `value` is an int, float, bool, str, or a sequence of these when `type` is ARRAY.

    Strings that are not UTF-8 carry their bytes as surrogate escapes, so that they can be written back unchanged.
    """

    key: str
    type: GGUFValueType
    value: Any
    item_type: GGUFValueType | None = None


def row_nbytes(type: GGMLQuantizationType, n_per_row: int) -> int:
    """Bytes of a row of `n_per_row` weights. Raises ValueError when they do not fill whole blocks of `type`."""
    block, nbytes = GGML_QUANT_SIZES[type]
    if n_per_row % block:
        raise ValueError(f"{n_per_row} columns do not fit {type.name} blocks of {block}")
    return n_per_row // block * nbytes
