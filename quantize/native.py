"""The package's own encoders (quantize/kernels): ggml's bytes, many times faster. Without them ggml encodes.

Before a type is first encoded, both sides encode a small sample; on any difference ggml is used, and one warning says
so. The environment variable BOREALIS_GGUF_ENCODERS picks the code by hand: ggml, baseline, avx2 or avx512.
"""

import ctypes
import hashlib
import os
import platform
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..checkpoint.types import row_nbytes
from ..errors import InvalidInput
from . import ggml

T = GGMLQuantizationType

ISAS = ("baseline", "avx2", "avx512")
"""Instruction sets the kernels are compiled for, from narrow to wide; their place is their number in the library."""

SWITCH = "BOREALIS_GGUF_ENCODERS"

_SOURCE_TYPES = {"float32": T.F32, "float16": T.F16, "uint16": T.BF16}


def encode(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> bool:
    """Fill `out` [n, row_nbytes] uint8 with `rows` [n, n_per_row] as `type`; returns whether all weights are finite.

    rows: float32, float16, or uint16 which means BF16, read as they are. importance: float32 [n_per_row] or None.
    The bytes are those of `ggml.encode` for every input, and so are the errors. Thread-safe; the GIL is released.
    """
    isa = encoder(type) if rows.ndim == 2 and rows.size else None
    if isa is None or (importance is not None and not np.isfinite(importance).all()):
        ggml.encode(rows, type, importance, out)
        return all_finite(rows)
    if encode_with(isa, rows, type, importance, out):
        return True
    ggml.encode(rows, type, importance, out)  # what NaN and infinity become, ggml alone defines
    return False


def encode_with(
    isa: str, rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray
) -> bool:
    """`encode` with the kernels of `isa` and nothing else; False means a weight was not finite, and `out` is void."""
    _check(rows, type, importance, out)
    library = _library()
    if library is None:
        raise InvalidInput(f"there are no native encoders in this installation; use {SWITCH}=ggml")
    rows = np.require(rows, requirements=["C", "A"])
    weights = None if importance is None else np.require(importance, requirements=["C", "A"])
    result = library.borealis_encode(
        ISAS.index(isa),
        type,
        rows.ctypes.data,
        _SOURCE_TYPES[rows.dtype.name],
        *rows.shape,
        None if weights is None else weights.ctypes.data,
        out.ctypes.data,
    )
    if result < 0:
        raise InvalidInput(f"{isa} kernels cannot encode {type.name} on this machine")
    return bool(result)


def all_finite(rows: np.ndarray) -> bool:
    """Whether no weight of `rows` (float32, float16, or uint16 which means BF16) is NaN or infinite."""
    if rows.dtype == np.uint16:
        return not bool(((rows & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(rows).all())


def available_isas() -> tuple[str, ...]:
    """The instruction sets this machine can run and this installation has kernels for, from narrow to wide."""
    return tuple(isa for isa in ISAS if can_encode(isa, T.Q8_0))


def can_encode(isa: str, type: GGMLQuantizationType) -> bool:
    """Whether there are kernels of `isa` for `type`, and this machine can run them."""
    library = _library()
    return library is not None and bool(library.borealis_can_encode(ISAS.index(isa), type))


def encoder(type: GGMLQuantizationType) -> str | None:
    """The instruction set whose kernels encode `type` here, tried and found equal to ggml; None where ggml encodes."""
    isa = _chosen_isa(os.environ.get(SWITCH))
    return isa if isa is not None and can_encode(isa, type) and _trusted(isa, type) else None


@cache
def _chosen_isa(choice: str | None) -> str | None:
    """The instruction set to use: `choice`, or else the widest. Warns once when there are no kernels at all."""
    isas = available_isas()
    if choice is None or choice == "":
        if not isas:
            warnings.warn("no native encoders in this installation: ggml encodes, more slowly", RuntimeWarning, 4)
        return isas[-1] if isas else None
    if choice == "ggml":
        return None
    if choice not in isas:
        raise InvalidInput(f"{SWITCH}={choice}: this machine and installation have {', '.join(('ggml', *isas))}")
    return choice


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels beside this file, or None."""
    for path in sorted(Path(__file__).parent.glob("_kernels*")):
        try:
            loaded = ctypes.CDLL(str(path))
            loaded.borealis_can_encode.argtypes = [ctypes.c_int, ctypes.c_int]
            pointer, long = ctypes.c_void_p, ctypes.c_int64
            loaded.borealis_encode.argtypes = [
                ctypes.c_int,
                ctypes.c_int,
                pointer,
                ctypes.c_int,
                long,
                long,
                pointer,
                pointer,
            ]
        except (OSError, AttributeError):
            continue
        return loaded
    return None


@cache
def _trusted(isa: str, type: GGMLQuantizationType) -> bool:
    """Whether the kernels encode the sample as they must. Milliseconds, once per type; a warning if they do not."""
    expected = _expected(type)
    equal = expected is None or sample_digest(type, isa) == expected
    if not equal:
        warnings.warn(f"{type.name}: the {isa} encoder differs from ggml's, which is used instead", RuntimeWarning, 4)
    return equal


def _expected(type: GGMLQuantizationType) -> str | None:
    """What the sample's digest must be: the loaded ggml's on x86-64. Other builds of ggml contract multiply-add and
    give other bytes; there x86-64's answer, recorded here, is the reference."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return sample_digest(type, None)
    return SAMPLE_DIGESTS.get(type.name)


def sample_digest(type: GGMLQuantizationType, isa: str | None) -> str:
    """A digest of the sample as `type`, without and with importance, by the kernels of `isa`, or by ggml if None."""
    rows, importance = _sample()
    digest = hashlib.sha256()
    for weights in (None, importance):
        if weights is None and ggml.requires_importance(type):
            continue
        out = np.empty((len(rows), row_nbytes(type, rows.shape[1])), np.uint8)
        if isa is None:
            ggml.encode(rows, type, weights, out)
        else:
            encode_with(isa, rows, type, weights, out)
        digest.update(out.tobytes())
    return digest.hexdigest()[:16]


def _sample() -> tuple[np.ndarray, np.ndarray]:
    """Weights [9, 512] of many kinds and an importance [512], made by integer arithmetic: the same everywhere."""
    state = np.arange(9 * 512, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    bits = (state >> np.uint64(32)).astype(np.int64).reshape(9, 512)
    signed = (bits % 2001 - 1000).astype(np.float32) * (bits >> 11 & 1023).astype(np.float32)
    rows = signed * np.float32(2.0**-24)
    rows[1] = np.abs(rows[1])
    rows[2] = -np.abs(rows[2])
    rows[3] *= bits[3] % 8 == 0
    rows[4] = (bits[4] % 17 - 8).astype(np.float32) / 8
    rows[5] = -0.75
    rows[6, ::37] = 32.0
    rows[7] *= np.float32(2.0**-20)
    rows[8] = np.ldexp(rows[8], np.repeat(bits[8, :16] % 40 - 20, 32))
    importance = (bits[0] % 977).astype(np.float32) / 1024
    return rows, importance


def _check(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> None:
    """Refuse what the kernels would read or write outside of the arrays."""
    if rows.ndim != 2 or not rows.size or rows.dtype.name not in _SOURCE_TYPES or not rows.dtype.isnative:
        raise ValueError(f"rows are [n, n_per_row] float32, float16 or uint16, not {rows.dtype} {rows.shape}")
    try:
        expected = (rows.shape[0], row_nbytes(type, rows.shape[1]))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if out.shape != expected or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out is writable, contiguous uint8 {list(expected)}, not {out.dtype} {list(out.shape)}")
    if importance is not None and (importance.shape != rows.shape[1:] or importance.dtype != np.float32):
        raise ValueError(f"importance is float32 [{rows.shape[1]}], not {importance.dtype} {list(importance.shape)}")


SAMPLE_DIGESTS: dict[str, str] = {
    "F32": "bd35474200f3e845",
    "F16": "3f1741c75289182b",
    "Q4_0": "8722a797b03abc10",
    "Q4_1": "3d6c478229801104",
    "Q5_0": "5a43c41c7d1cdd01",
    "Q5_1": "6b85f64a2ecae5de",
    "Q8_0": "e8d297adaa5e34d2",
    "Q2_K": "627b8159e6545102",
    "Q3_K": "a53bf51a18daf855",
    "Q4_K": "676f84bc7b678628",
    "Q5_K": "0d261888f18d967f",
    "Q6_K": "7459f99a10d8dd0e",
    "IQ4_NL": "f43fecd323c24b8c",
    "IQ4_XS": "233843affb918d7a",
    "BF16": "f989129b8a9516ec",
}
"""`sample_digest` of the reference, ggml on x86-64, by type."""
