"""The typical errors are those of ggml's encoders, and unrelated weights exceed the limits made of them."""

import numpy as np
import pytest

from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import row_nbytes
from borealis_gguf.quality.weights import error_bounds
from borealis_gguf.quality.weights.row_comparison import row_sums
from borealis_gguf.quantize.encoders import ggml

SLOW = {T.IQ1_S, T.IQ1_M, T.IQ2_XS, T.IQ2_S}
"""Their tables take seconds to build; they were measured once in the same way."""
TYPES = [type for type in error_bounds.TYPICAL if type not in SLOW and ggml.sizes(type) == (type.block, type.nbytes)]


def rows() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((24, 1024)).astype(np.float32) * np.float32(0.02)


def through(values: np.ndarray, type: T) -> np.ndarray:
    importance = np.random.default_rng(8).lognormal(0, 1, values.shape[1]).astype(np.float32)
    out = np.empty((len(values), row_nbytes(type, values.shape[1])), np.uint8)
    ggml.encode(values, type, importance if ggml.requires_importance(type) else None, out)
    return ggml.decode(out, type, values.shape[1])


def test_every_encodable_type_has_a_typical_error() -> None:
    writable = {t for t in T if t not in ggml.NOT_ENCODED and ggml.sizes(t) == (t.block, t.nbytes)}
    assert set(error_bounds.TYPICAL) == writable


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_measured_errors_equal_the_table(type: T) -> None:
    values = rows()
    source, both, error = row_sums(values, through(values, type)).sum(axis=1)
    relative, scale = (error / source) ** 0.5, both / source
    assert error_bounds.TYPICAL[type] * 0.8 <= relative <= error_bounds.TYPICAL[type]
    assert abs(scale - 1) <= error_bounds.scale_limit(type)


@pytest.mark.parametrize("type", [t for t in TYPES if error_bounds.TYPICAL[t] < 0.5], ids=lambda type: type.name)
def test_unrelated_weights_exceed_every_limit(type: T) -> None:
    """Rows that belong elsewhere, and rows that are 1.5 times too large, exceed the limit several times over."""
    values = rows()
    decoded = through(values, type)
    for wrong in (np.roll(decoded, 1, axis=0), np.roll(decoded, 1, axis=1), decoded * np.float32(1.5)):
        source, _, error = row_sums(values, wrong)
        assert ((error / source) ** 0.5 > error_bounds.limit(type)).all()


def test_tiny_weights_are_within_the_floor_of_float16_scales() -> None:
    values = rows() * np.float32(1e-4)
    for type in (T.Q8_0, T.Q4_K, T.Q6_K, T.F16):
        error = row_sums(values, through(values, type))[2]
        assert (
            error <= (error_bounds.limit(type) ** 2 * (values**2).sum(axis=1)) + error_bounds.floor(type) ** 2 * 1024
        ).all()
