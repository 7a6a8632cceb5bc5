"""ggml's own encoders and decoders, from the `libggml-base` that llama-cpp-python carries.

llama-cpp-python binds none of them, so they are bound here with ctypes, which releases the GIL during every call.
ggml aborts the whole process on arguments it cannot handle: they are checked before it is called.
"""

import ctypes
from collections.abc import Iterator
from functools import cache
from threading import Lock

import numpy as np

from ...checkpoint.types import FLOAT_DTYPES, LATTICE_TYPES, GGMLQuantizationType, row_nbytes
from ...errors import BorealisError, InvalidInput
from .libraries import library_path

T = GGMLQuantizationType

TILE_WEIGHTS = 1 << 15
"""Weights handed to ggml at a time: the float32 copy (128 KiB) stays in the cache, and no C `int` overflows."""

NOT_ENCODED = frozenset({T.Q8_1, T.Q8_K, T.I8, T.I16, T.I32, T.I64, T.F64})
"""Types of intermediate results and of integers: ggml does not quantize to them."""

LATTICE_LIMIT = 1e15
"""Largest importance x weight^2 for the lattice types: ggml squares the sum of 16 times that, in float32, and aborts
the process when NaN or overflow leaves the lattice."""

SOURCE_TYPES = {dtype: type for type, dtype in FLOAT_DTYPES.items()}
"""The arrays that rows may be, and their types. (Keyed by dtype: numpy takes microseconds to make a dtype's name.)"""


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, as far as it is read here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


_SIGNATURES = {
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ],
    ),
    "ggml_quantize_init": (None, [ctypes.c_int]),
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, [ctypes.c_int]),
    "ggml_validate_row_data": (ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), [ctypes.c_int]),
    "ggml_fp16_to_fp32_row": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]),
    "ggml_bf16_to_fp32_row": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]),
}


@cache
def library() -> ctypes.CDLL:
    """`libggml-base`, loaded once and kept; raises BorealisError in one line when it is missing or unusable."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise BorealisError(f"{path}: cannot be used ({error}); reinstall llama-cpp-python") from error
    return loaded


def sizes(type: GGMLQuantizationType) -> tuple[int, int]:
    """(weights, bytes) of one block of `type`, as the loaded ggml has it; (0, 0) for a type it does not know."""
    traits = library().ggml_get_type_traits(type)
    return (traits.contents.blck_size, traits.contents.type_size) if traits else (0, 0)


def requires_importance(type: GGMLQuantizationType) -> bool:
    """Whether ggml cannot encode to `type` at all without an importance matrix."""
    return bool(library().ggml_quantize_requires_imatrix(type))


def encode(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> bool:
    """Fill `out` [n, row_nbytes] uint8 with `rows` [n, n_per_row] as `type`, by ggml's own code.

    rows: float32, float16, or uint16 which means BF16. importance: float32 [n_per_row] or None. Rows that have the
    type already are copied. Returns whether every weight is finite. Raises InvalidInput where ggml would abort.
    Thread-safe, and the GIL is released.
    """
    _check(rows, type, importance, out)
    if not rows.size:
        return True
    source = SOURCE_TYPES[rows.dtype]
    if source == type:
        out[...] = np.ascontiguousarray(rows).view(np.uint8)
    finite = validate(np.ascontiguousarray(rows).view(np.uint8), source)
    if source == type:
        return finite
    _initialize(type)
    n_per_row = rows.shape[1]
    weights = None if importance is None else packed(importance)
    step = max(1, TILE_WEIGHTS // n_per_row)
    scratch = None if rows.dtype == np.float32 else np.empty((min(step, len(rows)), n_per_row), np.float32)
    quantize = library().ggml_quantize_chunk
    for start in range(0, len(rows), step):
        tile = _float32(rows[start : start + step], scratch)
        if type in LATTICE_TYPES and not fits_lattice(float(max(tile.max(), -tile.min())), weights):
            raise InvalidInput(
                f"weights or their importance are negative, huge or not finite: {type.name} cannot be made"
            )
        target = out[start : start + step]
        quantize(type, tile.ctypes.data, target.ctypes.data, 0, len(tile), n_per_row, _address(weights))
    return finite


def decode(data: np.ndarray, type: GGMLQuantizationType, n_per_row: int) -> np.ndarray:
    """`data` [n, row_nbytes] uint8 of `type` as float32 [n, n_per_row], by ggml's own code (for requantizing)."""
    nbytes = row_nbytes(type, n_per_row)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != nbytes:
        raise ValueError(f"{type.name} rows of {n_per_row} are uint8 [n, {nbytes}], not {data.dtype} {data.shape}")
    source = packed(data)
    if type == T.F32:
        return source.view(np.float32).copy()
    to_float = library().ggml_get_type_traits(type).contents.to_float
    if not to_float:
        raise InvalidInput(f"{type.name} cannot be read as weights")
    out = np.empty((len(source), n_per_row), np.float32)
    step = max(1, (1 << 30) // n_per_row)
    for start in range(0, len(source), step):
        tile = out[start : start + step]
        to_float(source[start : start + step].ctypes.data, tile.ctypes.data, tile.size)
    return out


EXPONENTS = {T.F32: ("<u4", 0x7F800000), T.F16: ("<u2", 0x7C00), T.BF16: ("<u2", 0x7F80)}
"""For float types: their integer view, and the exponent bits, all of which are set in NaN and infinity."""

SCALES = {
    **dict.fromkeys((T.Q1_0, T.Q2_0, T.Q4_0, T.Q5_0, T.Q8_0, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S), (0,)),
    **dict.fromkeys((T.IQ1_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_NL, T.IQ4_XS), (0,)),
    **dict.fromkeys((T.Q4_1, T.Q5_1, T.Q4_K, T.Q5_K), (0, 2)),
    **{T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q6_K: (208,), T.TQ1_0: (52,), T.TQ2_0: (64,)},
}
"""Offsets of the float16 scales in a block."""

VALIDATED_BYTES = 1 << 18
"""Bytes validated at a time: intermediate arrays stay in the cache."""


def validate(data: np.ndarray, type: GGMLQuantizationType) -> bool:
    """Whether `data` (uint8, whole blocks of `type`) is valid to ggml: no NaN or infinity in weights or scales.

    ggml itself validates only types whose scales are not plain: it prints faults on standard error.
    """
    if data.dtype != np.uint8 or data.size % type.nbytes:
        raise ValueError(f"{data.size} bytes of {data.dtype} are not whole {type.name} blocks")
    source = packed(data).reshape(-1)
    if type in EXPONENTS:
        dtype, bits = EXPONENTS[type]
        return not any(((part.view(dtype) & bits) == bits).any() for part in _parts(source, type))
    if type in SCALES:
        blocks = (part.reshape(-1, type.nbytes) for part in _parts(source, type))
        return not any(((part[:, at + 1] & 0x7C) == 0x7C).any() for part in blocks for at in SCALES[type])
    if type == T.MXFP4:  # a block begins with its exponent
        return not (source[:: type.nbytes] == 0xFF).any()
    return bool(library().ggml_validate_row_data(type, source.ctypes.data, source.size))


def _parts(source: np.ndarray, type: GGMLQuantizationType) -> Iterator[np.ndarray]:
    step = max(1, VALIDATED_BYTES // type.nbytes) * type.nbytes
    return (source[start : start + step] for start in range(0, source.size, step))


def packed(array: np.ndarray) -> np.ndarray:
    """`array` as C has it: contiguous and aligned. A copy only where it must be."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


_ready: set[GGMLQuantizationType] = set()
_ready_lock = Lock()


def _initialize(type: GGMLQuantizationType) -> None:
    """Build ggml's tables for `type`, once."""
    if type not in _ready:
        with _ready_lock:
            library().ggml_quantize_init(type)
            _ready.add(type)


def _float32(rows: np.ndarray, scratch: np.ndarray | None) -> np.ndarray:
    """`rows` as contiguous float32: as they are, or in `scratch`."""
    rows = packed(rows)
    if scratch is None:
        return rows
    convert = library().ggml_fp16_to_fp32_row if rows.dtype == np.float16 else library().ggml_bf16_to_fp32_row
    convert(rows.ctypes.data, scratch.ctypes.data, rows.size)
    return scratch[: len(rows)]


def fits_lattice(peak: float, importance: np.ndarray | None) -> bool:
    """Whether ggml's lattice search stays finite for weights of magnitude `peak` at most. NaN gives False."""
    if importance is None:
        return peak**4 <= LATTICE_LIMIT
    largest = float(importance.max())
    return bool(importance.min() >= 0) and peak <= LATTICE_LIMIT and peak**2 * largest <= LATTICE_LIMIT


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _check(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None, out: np.ndarray) -> None:
    """Refuse what would make ggml abort, or read or write outside of the arrays."""
    if rows.ndim != 2 or rows.dtype not in SOURCE_TYPES:
        raise ValueError(f"rows are [n, n_per_row] float32, float16 or uint16, not {rows.dtype} {rows.shape}")
    if type in NOT_ENCODED or sizes(type) != (type.block, type.nbytes):
        raise InvalidInput(f"{type.name} is not a type that weights can be quantized to")
    try:
        expected = (rows.shape[0], row_nbytes(type, rows.shape[1]))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if out.shape != expected or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out is writable, contiguous uint8 {list(expected)}, not {out.dtype} {list(out.shape)}")
    if importance is not None and (importance.shape != rows.shape[1:] or importance.dtype != np.float32):
        raise ValueError(f"importance is float32 [{rows.shape[1]}], not {importance.dtype} {list(importance.shape)}")
    if importance is None and requires_importance(type):
        raise InvalidInput(f"{type.name} needs an importance matrix: give one with --imatrix, or choose another type")
