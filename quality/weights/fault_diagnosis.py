"""Diagnoses a tensor with wrong weights from its rows: shifted, scaled, rows reordered, or another tensor's weights."""

from collections.abc import Sequence

import numpy as np

from ...pipeline.plan import Codec, Tensor
from ...pipeline.reader import SourceRows
from .row_comparison import read_ranges, row_dot, row_sums
from .sampled_rows import sample_rows
from .tensor_comparison import TensorComparison, TensorPair

ROWS = 16
SEARCHED_ROWS = 1 << 16
SEARCH_STEP = 1 << 21
NEAR = 0.5
"""A row counts as another row when its relative error to that one is below this; unrelated rows have 1.4."""


def diagnose_fault(result: TensorComparison, sources: Sequence[Tensor], codec: Codec) -> str:
    """In a clause, what the GGUF's tensor holds instead of its source; empty when no diagnosis fits.

    sources: all tensors of the source, one of which it may hold instead of its own.
    """
    with SourceRows(codec) as reader:
        pair = result.pair
        numbers = result.faulty_rows[:: max(1, len(result.faulty_rows) // ROWS)][:ROWS]
        decoded = read_ranges(reader, pair.gguf, [(row, 1) for row in numbers]).copy()
        source = read_ranges(reader, pair.source, [(row, 1) for row in numbers]).copy()
        if not np.isfinite(decoded).all():
            return ""
        return (
            _shifted_or_scaled(decoded, source)
            or _reordered_rows(reader, pair, numbers, decoded)
            or _other_tensor(reader, pair, sources)
            or ""
        )


def _shifted_or_scaled(decoded: np.ndarray, source: np.ndarray) -> str:
    """All weights with the same shift, or the same factor."""
    error = decoded - source
    shift = float(error.mean(dtype=np.float64))
    if abs(shift) > 1e-6 and float(error.std()) < 0.1 * abs(shift):
        return f"every weight is {abs(shift):.4g} too {'large' if shift > 0 else 'small'}"
    square, both, _ = row_sums(source, decoded).sum(axis=1)
    scale = both / square if square else 1.0
    rest = row_sums(source * np.float32(scale), decoded)[2].sum()
    if abs(scale) > 1e-3 and (rest / square) ** 0.5 < NEAR * min(abs(scale), abs(scale - 1) * 4):
        return f"the weights are scaled by {scale:.3g}"
    return ""


def _reordered_rows(reader: SourceRows, pair: TensorPair, numbers: Sequence[int], decoded: np.ndarray) -> str:
    """Rows of the same source in another order: for each decoded row, search the nearest row of the source."""
    tensor = pair.source
    if tensor.rows == 1 or tensor.rows > SEARCHED_ROWS:
        return ""
    best, nearest_row = np.full(len(decoded), np.inf), np.full(len(decoded), -1)
    step = max(1, SEARCH_STEP // tensor.n_per_row)
    for first in range(0, tensor.rows, step):
        rows = reader.read(tensor, first, min(step, tensor.rows - first))
        squares = row_dot(rows, rows)
        errors = squares - 2 * (decoded @ rows.T) + row_dot(decoded, decoded)[:, None]
        errors /= np.maximum(squares, np.float32(1e-30))
        nearest = errors.argmin(axis=1)
        value = errors[np.arange(len(decoded)), nearest]
        better = value < best
        best[better], nearest_row[better] = value[better], first + nearest[better]
    moved = [(row, int(at)) for row, at, e in zip(numbers, nearest_row, best, strict=True) if e < NEAR**2 and at != row]
    if len(moved) * 2 < len(numbers):
        return ""
    row, at = moved[0]
    return f"rows stand in other places: row {row} holds row {at} of the source"


def _other_tensor(reader: SourceRows, pair: TensorPair, sources: Sequence[Tensor]) -> str:
    """Another tensor of the source under this one's name."""
    ranges = [(row, 1) for row in sample_rows(pair.gguf.rows)]
    decoded = read_ranges(reader, pair.gguf, ranges).copy()
    for other in sources:
        if other.shape == pair.gguf.shape and other.name != pair.source.name:
            square, _, error = row_sums(read_ranges(reader, other, ranges), decoded).sum(axis=1)
            if error < NEAR**2 * square:
                return f"it holds {other.name}"
    return ""
