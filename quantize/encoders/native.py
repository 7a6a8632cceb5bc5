"""The package's own encoders (quantize/kernels): ggml's bytes, many times faster. Without them ggml encodes.

Before a type is first encoded, both sides encode a small sample; on any difference ggml is used, and one warning says
so. Of the lattice types, whose tables take ggml seconds to build, ggml's side comes from the cache for this very
library file, or else from SAMPLE_DIGESTS, until `self_test` has had the loaded ggml encode it.

ggml also encodes what has no kernels by design, without a warning: Q1_0, Q2_0 and NVFP4, and rows in which a weight is
NaN or infinite. The environment variable BOREALIS_GGUF_ENCODERS picks the encoders by hand: ggml, baseline, avx2 or
avx512.
"""

import ctypes
import hashlib
import os
import platform
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
from gguf import quants

from ...checkpoint.types import LATTICE_TYPES, GGMLQuantizationType, row_nbytes
from ...errors import EncoderWarning, InvalidInput
from . import ggml, ggml_digest_cache
from .sample_weights import SAMPLE_DIGESTS, sample_bytes, sample_weights

T = GGMLQuantizationType

ISAS = ("baseline", "avx2", "avx512")
"""Instruction sets the kernels are compiled for, from narrow to wide; the index is the number in the library."""

SWITCH = "BOREALIS_GGUF_ENCODERS"

LATTICES = {
    T.IQ3_XXS: (quants.IQ3_XXS, 3, 2),
    T.IQ3_S: (quants.IQ3_S, 3, 3),
    T.IQ2_XXS: (quants.IQ2_XXS, 2, 2),
    T.IQ2_XS: (quants.IQ2_XS, 2, 2),
    T.IQ2_S: (quants.IQ2_S, 2, 1),
    T.IQ1_S: (quants.IQ1_S, 2, 3),
    T.IQ1_M: (quants.IQ1_S, 2, 3),
}
"""Types whose groups of levels are points of a lattice: where its points stand, bits of a level, and how many different
distances ggml's search for a near point covers."""


def encode(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> bool:
    """Fill `out` [n, row_nbytes] uint8 with `rows` [n, n_per_row] as `type`; returns whether all weights are finite.

    rows: float32, float16, or uint16 which means BF16, read as they are. importance: float32 [n_per_row] or None.
    The bytes are those of `ggml.encode` for every input, and so are the errors. Thread-safe; the GIL is released.
    """
    isa = encoder(type) if rows.ndim == 2 and rows.size else None
    if isa is not None and _is_ordinary(rows, type, importance) and encode_with(isa, rows, type, importance, out):
        return True
    ggml.encode(rows, type, importance, out)  # only ggml defines the bytes of NaN and infinity
    return all_finite(rows)


def encode_with(
    isa: str, rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray
) -> bool:
    """`encode` with the kernels of `isa` and nothing else; False means a weight was not finite, and `out` is void."""
    _check(rows, type, importance, out)
    library = _library()
    if library is None or not can_encode(isa, type):
        raise InvalidInput(f"there are no {isa} kernels for {type.name} on this machine; use {SWITCH}=ggml")
    rows = ggml.packed(rows)
    weights = None if importance is None else ggml.packed(importance)
    result = library.borealis_encode(
        ISAS.index(isa),
        type,
        rows.ctypes.data,
        ggml.SOURCE_TYPES[rows.dtype],
        *rows.shape,
        None if weights is None else weights.ctypes.data,
        out.ctypes.data,
    )
    return bool(result)


def add_product(rows: np.ndarray, up: np.ndarray, down: np.ndarray, scale: float) -> bool:
    """rows += scale * up @ down, in place: float32 [n, n_per_row], [n, r], [r, n_per_row], all contiguous.

    False, with nothing done, where there are no kernels. The bits are those of `pipeline.low_rank.add_product`.
    """
    isa = chosen_isa()
    return isa is not None and add_product_with(isa, rows, up, down, scale)


def add_product_with(isa: str, rows: np.ndarray, up: np.ndarray, down: np.ndarray, scale: float) -> bool:
    """`add_product` with the kernels of `isa`."""
    library, (n, n_per_row), rank = _library(), rows.shape, up.shape[1]
    if up.shape[0] != n or down.shape != (rank, n_per_row):
        raise ValueError(f"rows {rows.shape}, up {up.shape} and down {down.shape} do not fit together")
    if any(a.dtype != np.float32 or not a.flags.c_contiguous for a in (rows, up, down)) or not rows.flags.writeable:
        raise ValueError("rows, up and down are contiguous float32, and rows can be written")
    if library is None or not rows.size:
        return False
    places = (rows.ctypes.data, up.ctypes.data, down.ctypes.data)
    return library.borealis_add_product(ISAS.index(isa), *places, n, n_per_row, rank, scale) == 1


def all_finite(rows: np.ndarray) -> bool:
    """Whether no weight of `rows` (float32, float16, or uint16 which means BF16) is NaN or infinite."""
    if rows.dtype == np.uint16:
        return not bool(((rows & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(rows).all())


def _is_ordinary(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None) -> bool:
    """Whether importance is finite and, for the lattice types, no weight is so large that ggml would abort."""
    if importance is not None and not np.isfinite(importance).all():
        return False
    if type not in LATTICE_TYPES:
        return True
    return ggml.fits_lattice(_peak(rows), importance)


def _peak(rows: np.ndarray) -> float:
    """The largest magnitude, without a copy of `rows`; NaN if there is one."""
    if rows.dtype != np.uint16:
        return float(max(rows.max(), -rows.min()))
    bits = max(int(rows.view(np.int16).max()), int(rows.max()) & 0x7FFF if rows.max() & 0x8000 else 0)
    return float(np.uint32(bits << 16).view(np.float32))


def available_isas() -> tuple[str, ...]:
    """The instruction sets this machine can run and this installation has kernels for, from narrow to wide."""
    return tuple(isa for isa in ISAS if can_encode(isa, T.Q8_0))


@cache
def can_encode(isa: str, type: GGMLQuantizationType) -> bool:
    """Whether there are kernels of `isa` for `type`, and this machine can run them."""
    library = _library()
    if library is None or not library.borealis_can_encode(ISAS.index(isa), type):
        return False
    with _lattice_lock:
        return _set_lattice(type)


def encoder(type: GGMLQuantizationType) -> str | None:
    """The instruction set whose kernels encode `type` here, found equal to ggml; None where ggml encodes."""
    isa = chosen_isa()
    return isa if isa is not None and trusted_types(isa, (type,)) else None


def chosen_isa() -> str | None:
    """The instruction set whose kernels encode here if found equal; None for ggml. Warns once if there are none."""
    return _chosen_isa(os.environ.get(SWITCH))


@cache
def _chosen_isa(choice: str | None) -> str | None:
    """The instruction set that `choice` names, or else the widest there is."""
    isas = available_isas()
    if choice is None or choice == "":
        if not isas:
            text = "no native encoders in this installation, so ggml encodes, more slowly; a C compiler at hand when"
            warnings.warn(f"{text} borealis-gguf is installed gives them", EncoderWarning, 4)
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
            loaded.borealis_set_lattice.argtypes = [*[ctypes.c_int] * 4, pointer, ctypes.c_int]
            loaded.borealis_add_product.argtypes = [ctypes.c_int, *[pointer] * 3, *[long] * 3, ctypes.c_float]
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


_lattice_lock = Lock()


@cache
def _set_lattice(type: GGMLQuantizationType) -> bool:
    """Hands the kernels the points of a lattice type, which the gguf package knows; milliseconds, once."""
    library = _library()
    if type not in LATTICES or library is None:
        return True
    grid, bits, n_distances = LATTICES[type]
    grid.init_grid()
    dims = grid.grid_shape[1]
    values = np.asarray(grid.grid).reshape(-1, dims)
    levels = np.searchsorted(sorted(set(grid.grid_map)), values).astype(np.uint16)
    codes = np.bitwise_or.reduce(levels << (bits * np.arange(dims, dtype=np.uint16)), axis=1).astype(np.uint16)
    return library.borealis_set_lattice(type, dims, bits, n_distances, codes.ctypes.data, len(codes)) == 0


_warned: set[tuple[str, GGMLQuantizationType]] = set()


def trusted_types(isa: str, types: Iterable[GGMLQuantizationType]) -> list[GGMLQuantizationType]:
    """The types that the kernels of `isa` encode as ggml does; one warning, once, names the types that differ."""
    able = [type for type in types if can_encode(isa, type)]
    trusted = [type for type in able if _trusted(isa, type)]
    wrong = [type for type in able if type not in trusted and (isa, type) not in _warned]
    if wrong:
        _warned.update((isa, type) for type in wrong)
        names = ", ".join(type.name for type in wrong)
        warnings.warn(f"{names}: the {isa} encoder differs from ggml's, which is used instead", EncoderWarning, 4)
    return trusted


@cache
def _trusted(isa: str, type: GGMLQuantizationType) -> bool:
    """Whether the kernels encode the sample as ggml does. Milliseconds, once per type."""
    expected = _expected(type)
    return expected is None or sample_digest(type, isa) == expected


def forget_self_tests() -> None:
    """Have every type compared again before it is next encoded."""
    _trusted.cache_clear()


def _expected(type: GGMLQuantizationType) -> str | None:
    """The reference digest of the sample, as far as it is known without building ggml's tables."""
    if not ggml_decides():
        return SAMPLE_DIGESTS.get(type.name)
    if type in LATTICE_TYPES:
        return ggml_digest_cache.read_digest(type, sample_bytes()) or SAMPLE_DIGESTS.get(type.name)
    return sample_digest(type, None)


def ggml_decides() -> bool:
    """Whether the loaded ggml is the reference. Its builds for other processors contract multiply-add and give other
    bytes: there SAMPLE_DIGESTS, from x86-64, are the reference."""
    return platform.machine().lower() in ("x86_64", "amd64")


def sample_digest(type: GGMLQuantizationType, isa: str | None) -> str:
    """A digest of the sample as `type`, without and with importance, by the kernels of `isa`, or by ggml if None."""
    rows, importance = sample_weights()
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


def _check(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> None:
    """Raises for arrays that would make the kernels read or write out of bounds."""
    if rows.ndim != 2 or not rows.size or rows.dtype not in ggml.SOURCE_TYPES:
        raise ValueError(f"rows are [n, n_per_row] float32, float16 or uint16, not {rows.dtype} {rows.shape}")
    try:
        expected = (rows.shape[0], row_nbytes(type, rows.shape[1]))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if out.shape != expected or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out is writable, contiguous uint8 {list(expected)}, not {out.dtype} {list(out.shape)}")
    if importance is not None and (importance.shape != rows.shape[1:] or importance.dtype != np.float32):
        raise ValueError(f"importance is float32 [{rows.shape[1]}], not {importance.dtype} {list(importance.shape)}")
