"""The result of comparing one tensor of a GGUF with its source: sums of errors, and the numbers of faulty rows."""

import threading
from dataclasses import dataclass, field

import numpy as np

from ...checkpoint.types import UNQUANTIZED, GGMLQuantizationType
from ...pipeline.plan import Tensor


@dataclass(frozen=True, slots=True)
class TensorPair:
    """A tensor of the GGUF and its source. `importance` is what the tensor's encoder was given, if that is known."""

    gguf: Tensor
    source: Tensor
    importance: np.ndarray | None = None

    @property
    def type(self) -> GGMLQuantizationType:
        return self.gguf.source.slice.type


@dataclass(slots=True)
class ErrorSums:
    """Σ source², Σ decoded·source and Σ (decoded - source)² over the rows whose weights are finite."""

    source: float = 0.0
    both: float = 0.0
    error: float = 0.0

    def add(self, other: "ErrorSums") -> None:
        self.source += other.source
        self.both += other.both
        self.error += other.error

    @property
    def relative(self) -> float:
        """The relative error: 0 for equal weights, about 1.4 for unrelated ones."""
        if not self.source:
            return 0.0 if not self.error else float("inf")
        return (self.error / self.source) ** 0.5


@dataclass(slots=True)
class TensorComparison:
    """What comparing one tensor has shown so far. Threads add to it while they hold `lock`.

    `compared` counts rows. Lists hold row numbers: `too_far` rows are no encoding of their source; `nonfinite` rows
    have a NaN or infinity that the source lacks, `nonfinite_in_source` rows have one that the source has too. Some rows
    were encoded again: `reencoded_equal` counts those that equal our encoding, `reencoded_different` lists the rest.
    """

    pair: TensorPair
    sums: ErrorSums = field(default_factory=ErrorSums)
    compared: int = 0
    too_far: list[int] = field(default_factory=list)
    nonfinite: list[int] = field(default_factory=list)
    nonfinite_in_source: list[int] = field(default_factory=list)
    reencoded_different: list[int] = field(default_factory=list)
    reencoded_equal: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def type(self) -> GGMLQuantizationType:
        return self.pair.type

    @property
    def other_encoder(self) -> bool:
        """Whether another encoder, or one with an importance matrix, made it: its weights need not be those of ours."""
        return self.type not in UNQUANTIZED and len(self.reencoded_different) > self.reencoded_equal

    @property
    def damaged(self) -> list[int]:
        """Rows with other weights than our encoder's where most rows have the same: they were changed afterwards."""
        return [] if self.other_encoder else self.reencoded_different

    @property
    def ok(self) -> bool:
        return not (self.too_far or self.nonfinite or self.damaged)

    @property
    def faulty_rows(self) -> list[int]:
        return sorted({*self.too_far, *self.nonfinite, *self.damaged})

    def sort(self) -> None:
        """Sort the lists of rows, which threads fill in any order."""
        for rows in (self.too_far, self.nonfinite, self.nonfinite_in_source, self.reencoded_different):
            rows.sort()
