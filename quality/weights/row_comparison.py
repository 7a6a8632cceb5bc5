"""Compares rows of a GGUF's tensor with those of its source: sums of errors, and rows encoded again for comparison."""

from collections.abc import Sequence

import numpy as np

from ...checkpoint.types import UNQUANTIZED, GGMLQuantizationType, row_nbytes
from ...errors import InvalidInput
from ...pipeline.plan import Codec, Tensor
from ...pipeline.reader import SourceRows
from ...quantize.encoders import ggml
from . import error_bounds
from .tensor_comparison import ErrorSums, TensorComparison, TensorPair

Range = tuple[int, int]
"""Rows as (first, count)."""


class RowComparer:
    """Compares ranges of rows for one thread, which owns the two readers.

    quick: rows of quantized types are encoded again only where their error is suspicious. unknown_importance: an
    importance matrix that is not at hand chose the bytes, so our encoder's need not equal them.
    """

    def __init__(
        self, codec: Codec, gguf: SourceRows, source: SourceRows, *, quick: bool, unknown_importance: bool
    ) -> None:
        self.codec, self.gguf, self.source = codec, gguf, source
        self.quick, self.unknown_importance = quick, unknown_importance

    def compare(self, result: TensorComparison, ranges: Sequence[Range]) -> None:
        """Add the rows of `ranges` to `result`."""
        pair = result.pair
        decoded = read_ranges(self.gguf, pair.gguf, ranges)
        source = read_ranges(self.source, pair.source, ranges)
        if pair.type in UNQUANTIZED and np.array_equal(source, decoded) and np.isfinite(source).all():
            with result.lock:  # nothing was lost, which no encoder could do better
                result.compared += len(source)
                result.reencoded_equal += len(source)
            return
        numbers = [row for first, count in ranges for row in range(first, first + count)]
        sums = row_sums(source, decoded)
        nonfinite, nonfinite_in_source = _nonfinite(decoded, source, sums)
        suspects = _suspects(pair, sums)
        all_rows = pair.type in UNQUANTIZED or not (self.quick or result.other_encoder)
        too_far, different, equal = self._judge(pair, source, decoded, sums, suspects, all_rows)
        with result.lock:
            result.sums.add(ErrorSums(*np.nansum(sums, axis=1).tolist()))
            result.compared += len(numbers)
            result.nonfinite += [numbers[row] for row in nonfinite]
            result.nonfinite_in_source += [numbers[row] for row in nonfinite_in_source]
            result.too_far += [numbers[row] for row in too_far]
            result.reencoded_different += [numbers[row] for row in different]
            result.reencoded_equal += equal

    def _judge(
        self,
        pair: TensorPair,
        source: np.ndarray,
        decoded: np.ndarray,
        sums: np.ndarray,
        suspects: np.ndarray,
        all_rows: bool,
    ) -> tuple[list[int], list[int], int]:
        """Encode `suspects`, or `all_rows`, again: (rows too far from their source, rows that differ, rows equal)."""
        finite = np.isfinite(sums).all(axis=0)
        rows = np.flatnonzero(finite if all_rows else suspects)
        if not rows.size:
            return [], [], 0
        selected = source if rows.size == len(source) else source[rows]
        reencoded = reencode(self.codec, selected, pair.type, pair.importance)
        if reencoded is None:
            return suspects.nonzero()[0].tolist(), [], 0
        equal = self._equal(pair, source[rows], decoded[rows], reencoded)
        as_near = equal | self._as_near(pair, sums[:, rows], row_sums(source[rows], reencoded))
        too_far = rows[~as_near & suspects[rows]].tolist()
        return (too_far, rows[~equal].tolist(), int(equal.sum())) if all_rows else (too_far, [], 0)

    def _equal(self, pair: TensorPair, source: np.ndarray, decoded: np.ndarray, reencoded: np.ndarray) -> np.ndarray:
        """Which rows equal `reencoded`, or what our encoder makes of the source rounded to F16 or BF16 first."""
        equal = _equal_rows(reencoded, decoded)
        for step in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
            left = np.flatnonzero(~equal)
            rounded = reencode(self.codec, source[left], step) if left.size else None
            again = reencode(self.codec, rounded, pair.type, pair.importance) if rounded is not None else None
            if again is not None:
                equal[left] = _equal_rows(again, decoded[left])
        return equal

    def _as_near(self, pair: TensorPair, sums: np.ndarray, reencoded_sums: np.ndarray) -> np.ndarray:
        """For each row, whether its errors are at most about as large as those of our encoder."""
        type, n = pair.type, pair.gguf.n_per_row
        weighted = self.unknown_importance or (pair.importance is None and ggml.requires_importance(type))
        factor, width = (error_bounds.ALIKE_WEIGHTED, 4) if weighted else (error_bounds.ALIKE, 1)
        least = error_bounds.floor(type) ** 2 * n
        near = sums[2] <= factor**2 * reencoded_sums[2] + least
        scale_near = np.abs(sums[1] - reencoded_sums[1]) <= width * error_bounds.scale_limit(type) * sums[0] + np.sqrt(
            least * sums[0]
        )
        return near & scale_near


def reencode(
    codec: Codec, source: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None = None
) -> np.ndarray | None:
    """Rows (float32 [rows, n]) encoded as `type` and decoded; None where they cannot be encoded.

    Types that need importance and are given none get equal importance for all columns.
    """
    n = source.shape[1]
    if importance is None and ggml.requires_importance(type):
        importance = np.ones(n, np.float32)
    out = np.empty((len(source), row_nbytes(type, n)), np.uint8)
    try:
        codec.encode(np.ascontiguousarray(source), type, importance, out)
    except InvalidInput:
        return None
    return codec.decode(out, type, n)


def read_ranges(reader: SourceRows, tensor: Tensor, ranges: Sequence[Range]) -> np.ndarray:
    """The rows of `ranges` one after another, as float32; valid until the reader's next use."""
    if len(ranges) == 1:
        return reader.read(tensor, *ranges[0])
    if all(count == 1 for _, count in ranges):
        return reader.read_each(tensor, [first for first, _ in ranges])
    rows = np.empty((sum(count for _, count in ranges), tensor.n_per_row), np.float32)
    at = 0
    for first, count in ranges:
        rows[at : at + count] = reader.read(tensor, first, count)
        at += count
    return rows


def row_sums(source: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """For each row Σ source², Σ decoded·source, Σ (decoded - source)²: float64 [3, rows]."""
    with np.errstate(all="ignore"):
        error = decoded - source
        sums = np.stack([row_dot(source, source), row_dot(decoded, source), row_dot(error, error)]).astype(np.float64)
        huge = ~np.isfinite(sums).all(axis=0)
        if huge.any():  # NaN stays so; squares of 1e20 do not
            a, b = source[huge].astype(np.float64), decoded[huge].astype(np.float64)
            sums[:, huge] = np.stack([row_dot(a, a), row_dot(b, a), row_dot(b - a, b - a)])
    return sums


def row_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The dot product of each row of `a` with the same row of `b`."""
    return np.einsum("ij,ij->i", a, b)


def _equal_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.array_equal(x, y) for x, y in zip(a, b, strict=True)], bool)


def _suspects(pair: TensorPair, sums: np.ndarray) -> np.ndarray:
    """Which rows are further from their source than the type's typical error allows."""
    type = pair.type
    least = error_bounds.floor(type) ** 2 * pair.gguf.n_per_row
    with np.errstate(invalid="ignore"):
        far = sums[2] > error_bounds.limit(type) ** 2 * sums[0] + least
        scaled = np.abs(sums[1] - sums[0]) > error_bounds.scale_limit(type) * sums[0] + np.sqrt(least * sums[0])
    return (far | scaled) & np.isfinite(sums).all(axis=0)


def _nonfinite(decoded: np.ndarray, source: np.ndarray, sums: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows of the GGUF with a NaN or infinity: those whose source has none, and those whose source has one too."""
    nonfinite: list[int] = []
    in_source: list[int] = []
    for row in np.flatnonzero(~np.isfinite(sums).all(axis=0)).tolist():
        if not np.isfinite(source[row]).all():
            in_source.append(row)
        elif not np.isfinite(decoded[row]).all():
            nonfinite.append(row)
    return nonfinite, in_source
