"""What the lattice types, MXFP4 and the ternary types do that others do not; test_kernels.py has the rest."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf.checkpoint.types import GGMLQuantizationType, row_nbytes
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.encoders import ggml, native

T = GGMLQuantizationType
ISAS = native.available_isas()
EVERY = pytest.mark.parametrize("isa", ISAS)
LATTICE_TYPES = (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S)


def encoded(
    isa: str | None, rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None = None
) -> np.ndarray:
    """By the kernels of `isa`, or by ggml if None."""
    out = np.empty((len(rows), row_nbytes(type, rows.shape[1])), np.uint8)
    if isa is None:
        ggml.encode(rows, type, importance, out)
    else:
        assert native.encode_with(isa, rows, type, importance, out)
    return out


def tied_rows() -> np.ndarray:
    """Rows [24, 512] of a few small integers: many candidates of a cell are equally near, many weights equal."""
    rng = np.random.default_rng(11)
    rows = [rng.integers(-top, top + 1, (6, 512)) for top in (1, 3, 8, 15)]
    return np.concatenate(rows).astype(np.float32)


@EVERY
@pytest.mark.parametrize("type", LATTICE_TYPES, ids=lambda type: type.name)
def test_the_first_of_equally_near_candidates_wins(isa: str, type: GGMLQuantizationType) -> None:
    """Digests of ggml's bytes, whose own tables take seconds to build."""
    importance = np.random.default_rng(12).integers(0, 3, 512).astype(np.float32)
    digest = hashlib.sha256(encoded(isa, tied_rows(), type, importance).tobytes()).hexdigest()[:16]
    assert digest == TIED_DIGESTS[type.name]


@EVERY
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_zeros_leave_no_gap_in_iq3_s(isa: str, weighted: bool) -> None:
    """All patterns of 8 blocks with and without weights: ggml moves what follows a block of zeros up."""
    present = (np.arange(256)[:, None] >> np.arange(8)) & 1
    rows = np.random.default_rng(13).standard_normal((256, 256)).astype(np.float32)
    rows *= present.repeat(32, axis=1)
    importance = np.linspace(0.5, 2, 256, dtype=np.float32) if weighted else None
    for type in (T.IQ3_S, T.IQ3_XXS):
        assert np.array_equal(encoded(isa, rows, type, importance), encoded(None, rows, type, importance))


@EVERY
def test_mxfp4_at_every_power_of_two(isa: str) -> None:
    """The exponent comes from log2f, which rounds up closely below a power of two; at both ends bytes wrap."""
    mantissas = np.array([0, 1, 0x400000, 0x7FFE00, *range(0x7FFF80, 0x800000)], np.uint32)
    bits = (np.arange(255, dtype=np.uint32)[:, None] << 23 | mantissas).ravel()
    subnormal = np.uint32(1) << np.arange(23, dtype=np.uint32)
    largest = np.concatenate([bits, subnormal, subnormal | 1]).view(np.float32)
    scale = np.linspace(-1, 1, 32, dtype=np.float32)
    rows = largest[:, None] * scale
    assert np.array_equal(encoded(isa, rows, T.MXFP4), encoded(None, rows, T.MXFP4))


@EVERY
def test_mxfp4_midpoints_go_to_the_smaller_value(isa: str) -> None:
    midpoints = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], np.float32)
    near = np.concatenate([midpoints, np.nextafter(midpoints, np.float32(0)), np.nextafter(midpoints, np.float32(99))])
    block = np.concatenate([near, -midpoints, np.array([12, 0, -0.0, 13], np.float32)])
    rows = block * np.float32(2) ** np.arange(-140, 122, dtype=np.float32)[:, None]
    assert np.array_equal(encoded(isa, rows, T.MXFP4), encoded(None, rows, T.MXFP4))


@EVERY
@pytest.mark.parametrize("type", [T.TQ1_0, T.TQ2_0], ids=lambda type: type.name)
def test_ternary_halves_and_scales_without_an_inverse(isa: str, type: GGMLQuantizationType) -> None:
    """Halves go away from zero; where 1 / d overflows every digit is 1."""
    rng = np.random.default_rng(14)
    half = np.float32(0.5)
    choice = np.array([0, half, np.nextafter(half, np.float32(0)), np.nextafter(half, np.float32(1)), 1], np.float32)
    rows = rng.choice(np.concatenate([choice, -choice]), (64, 256))
    scales = np.array([0, 1e-45, 1e-42, 1e-39, 3e-39, 1e-38, 1e-6, 1, 3e38], np.float32)
    rows = np.concatenate([rows * scale for scale in scales])
    assert np.array_equal(encoded(isa, rows, type), encoded(None, rows, type))


@EVERY
@pytest.mark.parametrize("source", [np.float32, np.uint16])
def test_weights_that_can_leave_the_lattice_are_encoded_by_ggml(isa: str, source: type) -> None:
    fits, huge = np.full((3, 256), 5000, np.float32), np.full((3, 256), 6000, np.float32)
    out = np.empty((3, 110), np.uint8)
    for rows, expected in ((fits, True), (huge, False)):
        given = rows if source is np.float32 else (rows.view(np.uint32) >> 16).astype(np.uint16)
        assert native.encode_with(isa, given, T.IQ3_S, None, out) == expected
    assert native.encode_with(isa, huge, T.IQ3_S, np.ones(256, np.float32), out)
    assert not native.encode_with(isa, huge, T.IQ3_S, -np.ones(256, np.float32), out)
    assert not native.encode_with(isa, huge, T.IQ3_S, np.full(256, 1e9, np.float32), out)
    with pytest.raises(InvalidInput, match="IQ3_S cannot be made"):
        native.encode(huge, T.IQ3_S, None, out)


@pytest.mark.parametrize("type", [T.IQ2_XXS, T.IQ2_XS, T.IQ1_S], ids=lambda type: type.name)
def test_without_importance_an_error_asks_for_it(type: GGMLQuantizationType) -> None:
    rows, out = np.ones((1, 256), np.float32), np.empty((1, row_nbytes(type, 256)), np.uint8)
    with pytest.raises(InvalidInput, match="needs an importance matrix"):
        native.encode(rows, type, None, out)


def test_the_first_use_does_not_wait_for_ggmls_tables() -> None:
    """ggml needs seconds for them; the kernels build their own in milliseconds."""
    program = (
        "import numpy as np\n"
        "from borealis_gguf.checkpoint.types import GGMLQuantizationType as T\n"
        "from borealis_gguf.quantize.encoders import ggml, native\n"
        "rows, out = np.ones((1, 256), np.float32), np.empty((1, 50), np.uint8)\n"
        "assert native.encode(rows, T.IQ1_S, np.ones(256, np.float32), out)\n"
        "assert not ggml._ready, ggml._ready\n"
    )
    folder = str(Path(native.__file__).resolve().parents[3])
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


TIED_DIGESTS = {
    "IQ1_S": "a41cb63f0142d500",
    "IQ1_M": "00ee8b5fca99d524",
    "IQ2_XXS": "879caf5486e6d13b",
    "IQ2_XS": "7dcdbe93629d86f4",
    "IQ2_S": "4929a1d7ff4c57b2",
    "IQ3_XXS": "c8ddb83e4e594936",
    "IQ3_S": "03ca6a6e1a68b9ef",
}
"""Of ggml's bytes for tied_rows, with the importance above; remake them with `encoded(None, ...)`."""
