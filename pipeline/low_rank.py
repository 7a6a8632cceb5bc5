"""Low-rank updates, computed for any range of rows alone: `W[rows] += scale * up[rows] @ down`.

Every element is the float32 sum of its products in the order of the rank, then scaled, then added to the weight.
A matrix product from a library would be faster still, but its last bits change with the shape of the range, the
processor and the threads; these sums are the same wherever they are computed.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from ..checkpoint.types import FLOAT_DTYPES, GGMLQuantizationType, Slice
from ..errors import BorealisError
from .plan import Codec, LowRank

TILE = 1 << 16
"""Elements summed at a time: the tile and its products stay in the cache. Any value gives the same bytes."""


class Updates:
    """The updates of one tensor: each `down` in memory, `up` read as its rows are needed."""

    def __init__(self, updates: Sequence[LowRank], codec: Codec) -> None:
        self.codec = codec
        self.updates = [(update, _down(update)) for update in updates]

    def add(self, rows: np.ndarray, picked: np.ndarray) -> None:
        """Update `rows`, float32 [n, n_per_row], in place. Row i is row `picked[i]` of the source.

        Raises BorealisError when an adapter's file has become shorter.
        """
        for update, down in self.updates:
            up = np.ascontiguousarray(_up(update, picked))
            if not self.codec.add_product(rows, up, down, update.scale):
                add_product(rows, up, down, update.scale)


def add_product(rows: np.ndarray, up: np.ndarray, down: np.ndarray, scale: float) -> None:
    """rows += scale * up @ down, in place: float32 [n, n_per_row], [n, r], [r, n_per_row]."""
    step = max(1, TILE // rows.shape[1])
    delta, product = np.empty((2, min(step, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), step):
        part, factors = rows[start : start + step], up[start : start + step]
        total, terms = delta[: len(part)], product[: len(part)]
        total[:] = 0
        for k, row in enumerate(down):
            np.multiply(factors[:, k, None], row, out=terms)
            total += terms
        total *= np.float32(scale)
        part += total


def memory(updates: Sequence[LowRank], rows: int) -> int:
    """Bytes that `Updates` holds at most while it works on `rows` rows in their order."""
    matrices = sum(4 * u.rank * (u.down.shape[u.transposed ^ 1] + 2 * rows) for u in updates)
    return matrices + 8 * max((max(TILE, u.down.shape[u.transposed ^ 1]) for u in updates), default=0)


def read_matrix(matrix: Slice) -> np.ndarray:
    """All of a matrix of an adapter, as float32."""
    height, width = matrix.shape
    return _read(matrix, 0, height, 0, width)


def _down(update: LowRank) -> np.ndarray:
    whole = read_matrix(update.down)
    return np.ascontiguousarray(whole.T) if update.transposed else whole


def _up(update: LowRank, picked: np.ndarray) -> np.ndarray:
    """float32 [n, r]: only the range of rows that `picked` lies in is read."""
    first, stop = int(picked.min()), int(picked.max()) + 1
    height, width = update.up.shape
    if update.transposed:
        return _read(update.up, 0, height, first, stop).T[picked - first]
    return _read(update.up, first, stop, 0, width)[picked - first]


def _read(matrix: Slice, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Rows `top` to `bottom` of columns `left` to `right`, as float32."""
    kind, width = FLOAT_DTYPES[matrix.type], matrix.shape[1]
    if right - left == width:
        strips = [(top * width, (bottom - top) * width)]
    else:
        strips = [(row * width + left, right - left) for row in range(top, bottom)]
    with matrix.path.open("rb") as file:
        parts = [_numbers(file, matrix, kind, *strip) for strip in strips]
    numbers = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if matrix.type == GGMLQuantizationType.BF16:
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32, copy=False).reshape(bottom - top, right - left)


def _numbers(file: BinaryIO, matrix: Slice, kind: "np.dtype[Any]", first: int, count: int) -> np.ndarray:
    file.seek(matrix.offset + first * kind.itemsize)
    numbers = np.fromfile(file, kind, count)
    if len(numbers) < count:
        raise BorealisError(f"{matrix.path}: ends inside a tensor it holds; the file is truncated: fetch it again")
    return numbers
