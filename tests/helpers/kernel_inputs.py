"""Weights and importance that have found faults in encoders: what the kernels are tried on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FLOAT_MAX = np.finfo(np.float32).max


def weights(rng: np.random.Generator, n: int, n_per_row: int) -> Iterator[tuple[str, np.ndarray]]:
    """Named finite float32 rows [n, n_per_row]."""
    shape = (n, n_per_row)
    z = rng.standard_normal(shape).astype(np.float32)
    row, block = (n, 1), (n, n_per_row // 32)
    one_ulp = np.where(rng.random(shape) < 0.3, np.nextafter(np.float32(1), np.float32(2)), np.float32(1))
    outlier = z * 0.01
    outlier.reshape(-1, 32)[:, 5] = 100
    kinds = {
        "normal": z * 0.02,
        "student t": rng.standard_t(3, shape),
        "cauchy": rng.standard_cauchy(shape),
        "rows of mixed scale": z * np.exp(rng.uniform(-20, 20, row)),
        "blocks of mixed scale": z * np.exp(rng.uniform(-8, 8, block)).repeat(32, axis=1),
        "positive": np.abs(z),
        "negative": -np.abs(z),
        "far below zero": -np.abs(z) - 3,
        "90 % zeros": np.where(rng.random(shape) < 0.9, 0, z),
        "ties of 1/8": rng.integers(-16, 17, shape) / 8,
        "ties of 1/2": rng.integers(-3, 4, shape) / 2,
        "constant rows": np.full(shape, -1.25) * rng.integers(-2, 3, row),
        "constant + 1 ulp": one_ulp * rng.choice([-1, 1], row),
        "an outlier a block": outlier,
        "scales below fp16's normal range": z * 1e-7,
        "1e-15": z * 1e-15,
        "1e-20": z * 1e-20,
        "1e-38": z * 1e-38,
        "float32 subnormals": z * 1e-42,
        "1e15": z * 1e15,
        "1e18": z * 1e18,
        "1e36": z * 1e36,
        "up to the largest float": z.astype(np.float64) * 1e38,
        "zeros of both signs": np.where(rng.random(shape) < 0.5, 0.0, -0.0),
        "random bits": finite_bits(rng, shape),
    }
    for name, rows in kinds.items():
        yield name, np.clip(rows, -FLOAT_MAX, FLOAT_MAX).astype(np.float32)


def sprinkled(rng: np.random.Generator, n: int, n_per_row: int) -> np.ndarray:
    """float32 rows [n, n_per_row] of which a few weights are infinite or NaN, with and without a payload."""
    rows = rng.standard_normal((n, n_per_row)).astype(np.float32)
    specials = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], np.uint32)
    places = rng.choice(rows.size, max(1, rows.size // 500), replace=False)
    rows.reshape(-1)[places] = rng.choice(specials, len(places)).view(np.float32)
    return rows


def importances(rng: np.random.Generator, n_per_row: int) -> Iterator[tuple[str, np.ndarray | None]]:
    """Named finite importance vectors float32 [n_per_row], None first, then those that real matrices look like."""
    yield "none", None
    yield "random", rng.random(n_per_row).astype(np.float32)
    yield "uniform", np.ones(n_per_row, np.float32)
    spread = (10 ** rng.uniform(-6, 2, n_per_row)).astype(np.float32)
    yield "1e-6 to 1e2 and 20 % zeros", np.where(rng.random(n_per_row) < 0.2, np.float32(0), spread)
    yield "negative", -rng.random(n_per_row).astype(np.float32)
    yield "mixed sign", rng.standard_normal(n_per_row).astype(np.float32)
    yield "zeros of both signs", rng.choice(np.array([0.0, -0.0], np.float32), n_per_row)
    yield "-0 among ones", np.where(rng.random(n_per_row) < 0.5, np.float32(-0.0), np.float32(1))
    yield "subnormal", rng.integers(1, 1 << 23, n_per_row, dtype=np.uint32).view(np.float32)
    yield "1e30", (rng.random(n_per_row) * 1e30).astype(np.float32)
    yield "3e38", np.full(n_per_row, 3e38, np.float32)
    yield "random bits", finite_bits(rng, (n_per_row,))


def importances_not_finite(rng: np.random.Generator, n_per_row: int) -> Iterator[tuple[str, np.ndarray]]:
    """Named importance vectors float32 [n_per_row] that are not finite in one place, or in all."""
    for name, special in (("NaN", np.nan), ("infinity", np.inf), ("-infinity", -np.inf)):
        importance = rng.random(n_per_row).astype(np.float32)
        importance[rng.integers(n_per_row)] = special
        yield f"one {name}", importance
        yield f"all {name}", np.full(n_per_row, special, np.float32)


def as_bf16(rows: np.ndarray) -> np.ndarray:
    """The upper halves of float32 rows: BF16 as uint16. A NaN stays one or becomes infinite."""
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def as_f16(rows: np.ndarray) -> np.ndarray:
    """float32 rows as float16; what is finite stays so."""
    return np.where(np.isfinite(rows), np.clip(rows, -65504, 65504), rows).astype(np.float16)


SOURCES = {"float32": lambda rows: rows, "bf16": as_bf16, "float16": as_f16}
"""What float32 rows are read as, by the name of the source format."""


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A source format by its bits: the integer type, the array's type, bits of the mantissa and of the exponent."""

    integer: type
    array: type
    mantissa: int
    exponent: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1


FORMATS = {
    "float32": FloatFormat(np.uint32, np.float32, 23, 8),
    "bf16": FloatFormat(np.uint16, np.uint16, 7, 8),
    "float16": FloatFormat(np.uint16, np.float16, 10, 5),
}


def with_exponents_below(bits: np.ndarray, format: FloatFormat, limit: int) -> np.ndarray:
    """The same signs and mantissas, and exponents (as they are stored) modulo `limit`."""
    mask = ((1 << format.exponent) - 1) << format.mantissa
    exponents = ((bits & mask) >> format.mantissa) % limit
    return ((bits & ~format.integer(mask)) | (exponents << format.mantissa)).astype(format.integer)


def finite_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of any bit pattern that is finite."""
    bits = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    return with_exponents_below(bits, FORMATS["float32"], 255).view(np.float32)


GUARD = 128


def guarded(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An output of `shape` in the middle of a marked buffer, and that buffer."""
    buffer = np.full(shape[0] * shape[1] + 2 * GUARD, 0xA5, np.uint8)
    return buffer[GUARD:-GUARD].reshape(shape), buffer


def overwritten(buffer: np.ndarray) -> int:
    """How many bytes around the output have changed."""
    return int((buffer[:GUARD] != 0xA5).sum() + (buffer[-GUARD:] != 0xA5).sum())
