"""Data classes of the file readers: tensor types, slices of files, metadata entries. No I/O."""

from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType


class GGMLQuantizationType(IntEnum):
    """The tensor types of GGUF (`ggml_type` of ggml.h), with the number of weights and of bytes in a block.

    The numbers are those of the gguf package, whose newest release lacks Q2_0.
    A member equals the gguf package's member of the same number.
    """

    block: int
    nbytes: int

    def __new__(cls, number: int, block: int, nbytes: int) -> "GGMLQuantizationType":
        member = int.__new__(cls, number)
        member._value_, member.block, member.nbytes = number, block, nbytes
        return member

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18


FLOAT_DTYPES = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype("<u2"),
}
"""numpy dtypes of the unquantized types; BF16, which numpy lacks, is read as 16-bit integers."""

UNQUANTIZED = frozenset(FLOAT_DTYPES)
"""The types that a checkpoint's tensors have; a GGUF of these alone has not been quantized."""

LATTICE_TYPES = frozenset(type for type in GGMLQuantizationType if type.name.startswith(("IQ1", "IQ2", "IQ3")))
"""The types of one to three bits whose groups of weights are points of a lattice, which an encoder searches."""

SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "<u1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
"""numpy dtypes of metadata values as stored in a GGUF."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on the Hub at a pinned revision; a changed `etag` means changed bytes.

    Messages name the file `label`; `url` never holds a token. `copies` are the addresses that `url` redirected to, each
    with its own ETag.
    """

    repo_id: str
    label: str
    url: str
    size: int
    etag: str
    copies: tuple[tuple[str, str], ...] = ()


FileStamp = tuple[int, int, int, int]
"""Of a file: size, time of modification and of its last change in ns, inode. One of them differs once it has changed.

(On Windows the third is the time of creation. Programs may set the time of modification, but not the other one.)
"""


@dataclass(frozen=True, slots=True)
class Slice:
    """One row-major array in a file: `shape` as in a checkpoint (the last axis is the row), bytes from `offset`.

    `type` is BF16, F16 or F32 in a checkpoint; a GGUF may hold any type. With `remote`, the bytes are on the Hub, and
    `path` is only a name for messages. `stamp` is the file's when its header was read, None for a remote one.
    """

    path: Path
    offset: int
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    remote: Remote | None = None
    stamp: FileStamp | None = field(default=None, compare=False, repr=False)

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
    """Returns the bytes of a row of `n_per_row` weights. Raises ValueError if they do not fill whole blocks."""
    if n_per_row % type.block:
        raise ValueError(f"{n_per_row} columns do not fit {type.name} blocks of {type.block}")
    return n_per_row // type.block * type.nbytes
