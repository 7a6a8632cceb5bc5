"""Encoder speed: the kernels of each instruction set against ggml's encoders, with their bytes compared."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ...checkpoint.types import GGMLQuantizationType, row_nbytes
from . import ggml, native

T = GGMLQuantizationType

BENCHED = (
    *(T.Q8_0, T.Q6_K, T.Q5_K, T.Q4_K, T.Q3_K, T.Q2_K, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.IQ4_NL, T.IQ4_XS),
    *(T.IQ3_S, T.IQ3_XXS, T.IQ2_S, T.IQ2_XS, T.IQ2_XXS, T.IQ1_M, T.IQ1_S, T.MXFP4, T.TQ1_0, T.TQ2_0, T.F16, T.BF16),
)
"""Types that weights are encoded to, the common ones first."""


@dataclass(frozen=True, slots=True)
class EncoderSpeed:
    """Medians of one case, in weights per second on one thread. `isa` and `native` are None where ggml encodes.

    `equal` tells whether both sides' bytes were equal in every repetition (true where only ggml ran).
    """

    type: GGMLQuantizationType
    importance: bool
    isa: str | None
    ggml: float
    native: float | None
    equal: bool

    @property
    def ratio(self) -> float:
        """How many times faster than ggml."""
        return 1.0 if self.native is None else self.native / self.ggml


def bench_encoders(
    types: Sequence[GGMLQuantizationType] = BENCHED,
    isas: Sequence[str] | None = None,
    source: GGMLQuantizationType = T.F32,
    seconds: float = 0.2,
    repetitions: int = 5,
) -> Iterator[EncoderSpeed]:
    """One EncoderSpeed for each type, without and with importance, and instruction set (by default all there are).

    Both sides encode the same rows of F32, F16 or BF16 (`source`) in turn, so that a change of clock or load meets
    both; ggml gets as many rows as take it about `seconds`, the kernels the same ones and more. One thread.
    """
    rows = sample_rows(512, 2560, source)
    importance = np.random.default_rng(2).uniform(0.1, 2, rows.shape[1]).astype(np.float32)
    for type in types:
        for weights in (None, importance):
            if weights is None and ggml.requires_importance(type):
                continue
            able = [isa for isa in isas or native.available_isas() if native.can_encode(isa, type)]
            yield from _bench_case(type, rows, weights, able, seconds, repetitions)


def sample_rows(n: int, n_per_row: int, source: GGMLQuantizationType) -> np.ndarray:
    """Random weights with the heavier tails of trained ones, as F32, F16 or BF16 (uint16)."""
    rows = (np.random.default_rng(1).standard_t(5, (n, n_per_row)) * 0.02).astype(np.float32)
    if source == T.BF16:
        return (rows.view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(np.float16) if source == T.F16 else rows


def _bench_case(
    type: GGMLQuantizationType,
    rows: np.ndarray,
    importance: np.ndarray | None,
    isas: Sequence[str],
    seconds: float,
    repetitions: int,
) -> Iterator[EncoderSpeed]:
    """One type, with or without importance: every side once in each repetition."""
    expected = np.empty((len(rows), row_nbytes(type, rows.shape[1])), np.uint8)
    encoded = np.empty_like(expected)
    ggml.encode(rows[:1], type, importance, expected[:1])  # its tables are built at the first call
    per_row = _elapsed(lambda: ggml.encode(rows[:4], type, importance, expected[:4])) / 4
    few = max(8, min(len(rows), int(seconds / per_row)))
    reference: list[float] = []
    times: dict[str, list[float]] = {isa: [] for isa in isas}
    equal = dict.fromkeys(isas, True)
    for _ in range(repetitions):
        reference.append(_elapsed(lambda: ggml.encode(rows[:few], type, importance, expected[:few])))
        for isa in isas:
            times[isa].append(_elapsed(lambda isa=isa: native.encode_with(isa, rows, type, importance, encoded)))
            equal[isa] &= bool((encoded[:few] == expected[:few]).all())
    n_per_row = rows.shape[1]
    by_ggml = few * n_per_row / median(reference)
    if not isas:
        yield EncoderSpeed(type, importance is not None, None, by_ggml, None, True)
    for isa in isas:
        yield EncoderSpeed(type, importance is not None, isa, by_ggml, rows.size / median(times[isa]), equal[isa])


def _elapsed(call: Callable[[], object]) -> float:
    """Seconds this thread computes, which other processes on the machine do not lengthen; wall time where the system
    counts a thread's time too coarsely."""
    clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter
    start = clock()
    call()
    return clock() - start
