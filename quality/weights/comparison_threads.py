"""Compares all tensors of a GGUF with their sources in threads, range by range: no tensor is ever whole in memory."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from ...pipeline.execute import Progress
from ...pipeline.plan import Codec
from ...pipeline.reader import SourceRows
from ...pipeline.sources import OpenSlice, open_local
from ...usable_cores import usable_cores
from .row_comparison import Range, RowComparer
from .sampled_rows import SAMPLED_ROWS, sample_rows
from .tensor_comparison import TensorComparison, TensorPair

CHUNK_WEIGHTS = 1 << 18


def compare_tensors(
    pairs: Sequence[TensorPair],
    codec: Codec,
    *,
    quick: bool,
    unknown_importance: bool = False,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    open_slice: OpenSlice = open_local,
) -> list[TensorComparison]:
    """Compare tensor after tensor in `jobs` threads; with `quick`, only SAMPLED_ROWS rows of each.

    unknown_importance: an importance matrix that is not at hand chose the bytes, so our encoder's need not equal them.
    open_slice: opens the source.
    """
    results = [TensorComparison(pair) for pair in pairs]
    threads = _ComparisonThreads(_ranges(results, quick), codec, quick, unknown_importance, open_slice)
    total = sum(_weights(result.pair, quick) for result in results)
    # a quick check has so little to do at a time that threads would only wait for each other
    threads.run(1 if quick else jobs or usable_cores(), total, on_progress)
    for result in results:
        result.sort()
    return results


def _weights(pair: TensorPair, quick: bool) -> int:
    rows = min(pair.gguf.rows, SAMPLED_ROWS) if quick else pair.gguf.rows
    return rows * pair.gguf.n_per_row


def _ranges(results: Iterable[TensorComparison], quick: bool) -> Iterator[tuple[TensorComparison, list[Range]]]:
    """The ranges of rows that are compared at a time: all sampled rows of a tensor, or CHUNK_WEIGHTS of it."""
    for result in results:
        tensor = result.pair.gguf
        if quick:
            yield result, [(row, 1) for row in sample_rows(tensor.rows)]
            continue
        step = max(1, CHUNK_WEIGHTS // tensor.n_per_row)
        for first in range(0, tensor.rows, step):
            yield result, [(first, min(step, tensor.rows - first))]


class _ComparisonThreads:
    """What the threads of one comparison share: the work that is left, the progress, and the first error."""

    def __init__(
        self,
        work: Iterator[tuple[TensorComparison, list[Range]]],
        codec: Codec,
        quick: bool,
        unknown_importance: bool,
        open_slice: OpenSlice,
    ) -> None:
        self.work, self.codec, self.quick, self.unknown_importance = work, codec, quick, unknown_importance
        self.open_slice = open_slice
        self.lock = threading.Lock()
        self.done = 0
        self.error: BaseException | None = None

    def run(self, jobs: int, total: int, on_progress: Callable[[Progress], None] | None) -> None:
        """Compare everything, and raise the first error of any thread."""
        threads = [threading.Thread(target=self._compare, name=f"compare-{n}") for n in range(jobs)]
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

    def _compare(self) -> None:
        """One thread: compare ranges until none is left or a thread has failed."""
        try:
            with SourceRows(self.codec) as gguf, SourceRows(self.codec, self.open_slice) as source:
                comparer = RowComparer(
                    self.codec, gguf, source, quick=self.quick, unknown_importance=self.unknown_importance
                )
                while not self.error:
                    with self.lock:
                        item = next(self.work, None)
                    if item is None:
                        return
                    result, ranges = item
                    comparer.compare(result, ranges)
                    with self.lock:
                        self.done += sum(count for _, count in ranges) * result.pair.gguf.n_per_row
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
