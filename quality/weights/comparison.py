"""Every tensor decoded and compared with the rows it was made of, in ranges: no tensor is ever whole in memory."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ...checkpoint.types import GGMLQuantizationType, row_nbytes
from ...errors import InvalidInput
from ...pipeline.execute import Progress
from ...pipeline.plan import FLOAT_DTYPES, Codec, Tensor
from ...pipeline.reader import SourceRows
from ...pipeline.sources import OpenSlice, open_local
from ...quantize.encoders import ggml
from ...usable_cores import usable_cores
from . import error_bounds

CHUNK_WEIGHTS = 1 << 18
SAMPLED_ROWS = 8
LOSSLESS = frozenset(FLOAT_DTYPES)
Range = tuple[int, int]
"""Rows as (first, count)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the GGUF, and what it should be. `importance` is what its encoder was given, if that is known."""

    gguf: Tensor
    source: Tensor
    importance: np.ndarray | None = None


@dataclass(slots=True)
class Sums:
    """Σ source², Σ decoded·source and Σ (decoded - source)² over the rows whose weights are finite."""

    source: float = 0.0
    both: float = 0.0
    error: float = 0.0

    def add(self, other: "Sums") -> None:
        self.source += other.source
        self.both += other.both
        self.error += other.error

    @property
    def relative(self) -> float:
        """The relative error: 0 is equal, about 1.4 are weights that have nothing to do with each other."""
        if not self.source:
            return 0.0 if not self.error else float("inf")
        return (self.error / self.source) ** 0.5


@dataclass(slots=True)
class Comparison:
    """One tensor: what was seen of it, and whether its rows are what they should be.

    `count` rows were compared. `bad` are no encoding of their source; `broken` have a NaN or infinity that the source
    has not, `inherited` one that it has too. Of the rows that were encoded again, `different` have other weights
    than our encoder gives them, `equal` is how many have the same.
    """

    pair: Pair
    sums: Sums = field(default_factory=Sums)
    count: int = 0
    bad: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    inherited: list[int] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    equal: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def type(self) -> GGMLQuantizationType:
        return self.pair.gguf.source.slice.type

    @property
    def unlike(self) -> bool:
        """Whether another encoder, or one with an importance matrix, made it: its weights need not be those of ours."""
        return self.type not in LOSSLESS and len(self.different) > self.equal

    @property
    def damaged(self) -> list[int]:
        """Rows that differ from what our encoder gives where most are the same: they were changed afterwards."""
        return [] if self.unlike else self.different

    @property
    def ok(self) -> bool:
        return not (self.bad or self.broken or self.damaged)

    @property
    def rows(self) -> list[int]:
        """The rows that are not as they should be."""
        return sorted({*self.bad, *self.broken, *self.damaged})


def compare(
    pairs: Sequence[Pair],
    codec: Codec,
    *,
    quick: bool,
    weighted: bool = False,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    open_slice: OpenSlice = open_local,
) -> list[Comparison]:
    """Compare tensor after tensor, in `jobs` threads; with `quick`, only SAMPLED_ROWS rows of each.

    weighted: an importance matrix that is not at hand chose the bytes, so that ours need not equal them. open_slice:
    opens what the GGUF was made from.
    """
    results = [Comparison(pair) for pair in pairs]
    run = _Run(_ranges(results, quick), codec, quick, weighted, open_slice)
    # so little is done at a time that threads would only wait for each other
    run.work(1 if quick else jobs or usable_cores(), sum(_weights(r.pair, quick) for r in results), on_progress)
    for result in results:
        for rows in (result.bad, result.broken, result.inherited, result.different):
            rows.sort()
    return results


def sampled_rows(rows: int) -> list[int]:
    """The first, the last, and one of each stretch between, not evenly spaced: no head or block is left out often."""
    if rows <= SAMPLED_ROWS:
        return list(range(rows))
    starts = [rows * n // SAMPLED_ROWS for n in range(SAMPLED_ROWS)]
    inner = [a + int((b - a) * (n * 0.618034 % 1)) for n, (a, b) in enumerate(pairwise(starts))]
    return [0, *inner[1:], rows - 1]


def _weights(pair: Pair, quick: bool) -> int:
    rows = min(pair.gguf.rows, SAMPLED_ROWS) if quick else pair.gguf.rows
    return rows * pair.gguf.n_per_row


def _ranges(results: Iterable[Comparison], quick: bool) -> Iterator[tuple[Comparison, list[Range]]]:
    """Work in pieces."""
    for result in results:
        tensor = result.pair.gguf
        if quick:
            yield result, [(row, 1) for row in sampled_rows(tensor.rows)]
            continue
        step = max(1, CHUNK_WEIGHTS // tensor.n_per_row)
        for first in range(0, tensor.rows, step):
            yield result, [(first, min(step, tensor.rows - first))]


class _Run:
    """What the threads of one comparison share."""

    def __init__(
        self,
        pieces: Iterator[tuple[Comparison, list[Range]]],
        codec: Codec,
        quick: bool,
        weighted: bool,
        open_slice: OpenSlice,
    ) -> None:
        self.pieces, self.codec, self.quick, self.weighted = pieces, codec, quick, weighted
        self.open_slice = open_slice
        self.lock = threading.Lock()
        self.done = 0
        self.error: BaseException | None = None

    def work(self, jobs: int, total: int, on_progress: Callable[[Progress], None] | None) -> None:
        threads = [threading.Thread(target=self._worker, name=f"compare-{n}") for n in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if on_progress:
                        on_progress(Progress(self.done, total, 0.0))
        except BaseException as error:
            self.error = self.error or error
            raise
        finally:
            for thread in threads:
                thread.join()
        if self.error:
            raise self.error

    def _worker(self) -> None:
        with ExitStack() as stack:
            try:
                ours = stack.enter_context(SourceRows(self.codec))
                theirs = stack.enter_context(SourceRows(self.codec, self.open_slice))
                worker = _Worker(self, ours, theirs)
                while not self.error:
                    with self.lock:
                        piece = next(self.pieces, None)
                    if piece is None:
                        return
                    worker.compare(*piece)
                    with self.lock:
                        self.done += sum(count for _, count in piece[1]) * piece[0].pair.gguf.n_per_row
            except BaseException as error:
                with self.lock:
                    self.error = self.error or error


class _Worker:
    """One thread's two readers: the GGUF's rows and the source's."""

    def __init__(self, run: _Run, ours: SourceRows, theirs: SourceRows) -> None:
        self.run, self.ours, self.theirs = run, ours, theirs

    def compare(self, result: Comparison, ranges: Sequence[Range]) -> None:
        """Add the rows of `ranges` to `result`."""
        pair = result.pair
        decoded = read_ranges(self.ours, pair.gguf, ranges)
        source = read_ranges(self.theirs, pair.source, ranges)
        if pair.gguf.source.slice.type in LOSSLESS and np.array_equal(source, decoded) and np.isfinite(source).all():
            with result.lock:  # nothing was lost, which no encoder could do better
                result.count += len(source)
                result.equal += len(source)
            return
        numbers = [row for first, count in ranges for row in range(first, first + count)]
        sums = row_sums(source, decoded)
        broken, inherited = _nonfinite(decoded, source, sums)
        suspects = _suspects(pair, sums)
        whole = pair.gguf.source.slice.type in LOSSLESS or not (self.run.quick or result.unlike)
        bad, different, equal = self.again(pair, source, decoded, sums, suspects, whole)
        with result.lock:
            result.sums.add(Sums(*np.nansum(sums, axis=1).tolist()))
            result.count += len(numbers)
            result.broken += [numbers[row] for row in broken]
            result.inherited += [numbers[row] for row in inherited]
            result.bad += [numbers[row] for row in bad]
            result.different += [numbers[row] for row in different]
            result.equal += equal

    def again(
        self, pair: Pair, source: np.ndarray, decoded: np.ndarray, sums: np.ndarray, suspects: np.ndarray, whole: bool
    ) -> tuple[list[int], list[int], int]:
        """Encode the suspected rows again, or the `whole` range: (rows that are bad, rows that differ, rows equal)."""
        finite = np.isfinite(sums).all(axis=0)
        rows = np.flatnonzero(finite if whole else suspects)
        if not rows.size:
            return [], [], 0
        own = self.own(pair, source if rows.size == len(source) else source[rows])
        if own is None:
            return suspects.nonzero()[0].tolist(), [], 0
        equal = self.equal(pair, source[rows], decoded[rows], own)
        alike = equal | self.alike(pair, sums[:, rows], row_sums(source[rows], own))
        bad = rows[~alike & suspects[rows]].tolist()
        return (bad, rows[~equal].tolist(), int(equal.sum())) if whole else (bad, [], 0)

    def equal(self, pair: Pair, source: np.ndarray, decoded: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Which rows hold what our encoder gives, `own`, or what it gives by way of an F16 or BF16 file."""
        equal = _equal_rows(own, decoded)
        for step in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
            left = np.flatnonzero(~equal)
            rounded = self.through(source[left], step) if left.size else None
            again = self.through(rounded, pair.gguf.source.slice.type, pair) if rounded is not None else None
            if again is not None:
                equal[left] = _equal_rows(again, decoded[left])
        return equal

    def own(self, pair: Pair, source: np.ndarray) -> np.ndarray | None:
        """What our encoder makes of `source`, decoded; None where it cannot."""
        return self.through(source, pair.gguf.source.slice.type, pair)

    def through(self, source: np.ndarray, type: GGMLQuantizationType, pair: Pair | None = None) -> np.ndarray | None:
        """`source` encoded as `type`, with the importance of `pair`, and decoded; None where that cannot be."""
        n = source.shape[1]
        importance = pair.importance if pair else None
        if importance is None and ggml.requires_importance(type):
            importance = np.ones(n, np.float32)
        out = np.empty((len(source), row_nbytes(type, n)), np.uint8)
        try:
            self.run.codec.encode(np.ascontiguousarray(source), type, importance, out)
        except InvalidInput:
            return None
        return self.run.codec.decode(out, type, n)

    def alike(self, pair: Pair, found: np.ndarray, own: np.ndarray) -> np.ndarray:
        """For each row, whether its sums are about as good as our encoder's."""
        type, n = pair.gguf.source.slice.type, pair.gguf.n_per_row
        weighted = self.run.weighted or (pair.importance is None and ggml.requires_importance(type))
        factor, width = (error_bounds.ALIKE_WEIGHTED, 4) if weighted else (error_bounds.ALIKE, 1)
        least = error_bounds.floor(type) ** 2 * n
        near = found[2] <= factor**2 * own[2] + least
        straight = np.abs(found[1] - own[1]) <= width * error_bounds.scale_limit(type) * found[0] + np.sqrt(
            least * found[0]
        )
        return near & straight


def read_ranges(reader: SourceRows, tensor: Tensor, ranges: Sequence[Range]) -> np.ndarray:
    """The rows of `ranges` one after another, as float32; good until the reader's next use."""
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
        sums = np.stack([_dot(source, source), _dot(decoded, source), _dot(error, error)]).astype(np.float64)
        huge = ~np.isfinite(sums).all(axis=0)
        if huge.any():  # NaN stays so; squares of 1e20 do not
            a, b = source[huge].astype(np.float64), decoded[huge].astype(np.float64)
            sums[:, huge] = np.stack([_dot(a, a), _dot(b, a), _dot(b - a, b - a)])
    return sums


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _equal_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.array_equal(x, y) for x, y in zip(a, b, strict=True)], bool)


def _suspects(pair: Pair, sums: np.ndarray) -> np.ndarray:
    """Which rows are further from their source than the type's typical error lets expect."""
    type = pair.gguf.source.slice.type
    least = error_bounds.floor(type) ** 2 * pair.gguf.n_per_row
    with np.errstate(invalid="ignore"):
        far = sums[2] > error_bounds.limit(type) ** 2 * sums[0] + least
        askew = np.abs(sums[1] - sums[0]) > error_bounds.scale_limit(type) * sums[0] + np.sqrt(least * sums[0])
    return (far | askew) & np.isfinite(sums).all(axis=0)


def _nonfinite(decoded: np.ndarray, source: np.ndarray, sums: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows of the GGUF with a NaN or infinity: those whose source has none, and those whose source has one too."""
    broken: list[int] = []
    inherited: list[int] = []
    for row in np.flatnonzero(~np.isfinite(sums).all(axis=0)).tolist():
        if not np.isfinite(source[row]).all():
            inherited.append(row)
        elif not np.isfinite(decoded[row]).all():
            broken.append(row)
    return broken, inherited
