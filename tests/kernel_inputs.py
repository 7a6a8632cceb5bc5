"""Weights and importance that have found faults in encoders: what the kernels are tried on."""

from collections.abc import Iterator

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
        "random bits": _finite(rng.integers(0, 1 << 32, shape, dtype=np.uint32)).view(np.float32),
    }
    for name, rows in kinds.items():
        yield name, np.clip(rows, -FLOAT_MAX, FLOAT_MAX).astype(np.float32)


def importances(rng: np.random.Generator, n_per_row: int) -> Iterator[tuple[str, np.ndarray | None]]:
    """Named importance vectors float32 [n_per_row], None first."""
    yield "none", None
    yield "random", rng.random(n_per_row).astype(np.float32)
    yield "uniform", np.ones(n_per_row, np.float32)
    spread = (10 ** rng.uniform(-6, 2, n_per_row)).astype(np.float32)
    yield "1e-6 to 1e2 and 20 % zeros", np.where(rng.random(n_per_row) < 0.2, np.float32(0), spread)


def as_bf16(rows: np.ndarray) -> np.ndarray:
    """The upper halves of float32 rows: BF16 as uint16."""
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def as_f16(rows: np.ndarray) -> np.ndarray:
    """float32 rows as finite float16."""
    return np.clip(rows, -65504, 65504).astype(np.float16)


def _finite(bits: np.ndarray) -> np.ndarray:
    """float32 bits with the exponent of infinity and NaN made an ordinary one."""
    return np.where((bits & 0x7F800000) == 0x7F800000, bits & np.uint32(0xBFFFFFFF), bits)
