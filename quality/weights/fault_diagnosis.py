"""What happened to a tensor that is not what it should be: guessed from its rows, so that a fault has a name."""

from collections.abc import Sequence

import numpy as np

from ...pipeline.plan import Codec, Tensor
from ...pipeline.reader import SourceRows
from .comparison import Comparison, Pair, read_ranges, row_sums, sampled_rows

ROWS = 16
SEARCHED_ROWS = 1 << 16
SEARCH_STEP = 1 << 21
NEAR = 0.5
"""A row is taken for another one when its relative error to that is below; unrelated rows have 1.4."""


def diagnose(result: Comparison, sources: Sequence[Tensor], codec: Codec) -> str:
    """In a clause, what the GGUF's tensor holds instead of its source; empty when nothing tells.

    sources: all tensors it could have been mistaken for.
    """
    with SourceRows(codec) as reader:
        pair = result.pair
        numbers = result.rows[:: max(1, len(result.rows) // ROWS)][:ROWS]
        found = read_ranges(reader, pair.gguf, [(row, 1) for row in numbers]).copy()
        wanted = read_ranges(reader, pair.source, [(row, 1) for row in numbers]).copy()
        if not np.isfinite(found).all():
            return ""
        return (
            _changed(found, wanted)
            or _other_rows(reader, pair, numbers, found)
            or _other_tensor(reader, pair, sources)
            or ""
        )


def _changed(found: np.ndarray, wanted: np.ndarray) -> str:
    """The same weights, all shifted or scaled."""
    noise = found - wanted
    shift = float(noise.mean(dtype=np.float64))
    if abs(shift) > 1e-6 and float(noise.std()) < 0.1 * abs(shift):
        return f"every weight is {abs(shift):.4g} too {'large' if shift > 0 else 'small'}"
    source, both, _ = row_sums(wanted, found).sum(axis=1)
    scale = both / source if source else 1.0
    rest = row_sums(wanted * np.float32(scale), found)[2].sum()
    if abs(scale) > 1e-3 and (rest / source) ** 0.5 < NEAR * min(abs(scale), abs(scale - 1) * 4):
        return f"the weights are scaled by {scale:.3g}"
    return ""


def _other_rows(reader: SourceRows, pair: Pair, numbers: Sequence[int], found: np.ndarray) -> str:
    """Rows of the same source that stand in another place."""
    tensor = pair.source
    if tensor.rows == 1 or tensor.rows > SEARCHED_ROWS:
        return ""
    best, where = np.full(len(found), np.inf), np.full(len(found), -1)
    step = max(1, SEARCH_STEP // tensor.n_per_row)
    for first in range(0, tensor.rows, step):
        rows = reader.read(tensor, first, min(step, tensor.rows - first))
        squares = np.einsum("ij,ij->i", rows, rows)
        errors = squares - 2 * (found @ rows.T) + np.einsum("ij,ij->i", found, found)[:, None]
        errors /= np.maximum(squares, np.float32(1e-30))
        nearest = errors.argmin(axis=1)
        value = errors[np.arange(len(found)), nearest]
        better = value < best
        best[better], where[better] = value[better], first + nearest[better]
    moved = [(row, int(at)) for row, at, e in zip(numbers, where, best, strict=True) if e < NEAR**2 and at != row]
    if len(moved) * 2 < len(numbers):
        return ""
    row, at = moved[0]
    return f"rows stand in other places: row {row} holds row {at} of the source"


def _other_tensor(reader: SourceRows, pair: Pair, sources: Sequence[Tensor]) -> str:
    """Another tensor of the checkpoint under this one's name."""
    ranges = [(row, 1) for row in sampled_rows(pair.gguf.rows)]
    found = read_ranges(reader, pair.gguf, ranges).copy()
    for other in sources:
        if other.shape == pair.gguf.shape and other.name != pair.source.name:
            source, _, error = row_sums(read_ranges(reader, other, ranges), found).sum(axis=1)
            if error < NEAR**2 * source:
                return f"it holds {other.name}"
    return ""
