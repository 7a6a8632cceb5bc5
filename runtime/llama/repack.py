"""Which matrices llama.cpp repacks for this CPU, in "extra" buffers, and how large they are there.

ggml answers that, asked as llama.cpp asks when it loads a model: with an operation on a tensor without data. The answer
depends on the CPU, the type and the number of rows.
"""

import ctypes
from functools import cache
from typing import Any

from ...checkpoint.types import GGMLQuantizationType
from . import devices
from .devices import device_handle

T = GGMLQuantizationType
F32 = 0
COLUMNS = 512  # of the other factor, as in llama.cpp
REPACKABLE = frozenset({
    T.Q2_K, T.Q3_K, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.F16, T.BF16
})  # fmt: skip
"""Types that ggml may be asked about: with one it does not know, it would end the process."""


class _InitParams(ctypes.Structure):  # ggml_init_params
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _TensorHead(ctypes.Structure):  # the first fields of ggml_tensor
    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p))


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (ctypes.c_void_p, [_InitParams]),
    "ggml_free": (None, [ctypes.c_void_p]),
    "ggml_tensor_overhead": (ctypes.c_size_t, []),
    "ggml_new_tensor_2d": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (ctypes.c_void_p, 3 * [ctypes.c_void_p]),
    "ggml_backend_buft_alloc_buffer": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "ggml_backend_buft_get_alloc_size": (ctypes.c_size_t, 2 * [ctypes.c_void_p]),
    "ggml_backend_buffer_free": (None, [ctypes.c_void_p]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, 2 * [ctypes.c_void_p]),
}


@cache
def repacked_nbytes(type: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes of the repacked copy of a matrix on the CPU; 0: llama.cpp multiplies with the matrix as it is."""
    if type not in REPACKABLE or len(shape) != 2:
        return 0
    cpu = device_handle("CPU")
    for buffer_type in _extra_buffer_types(cpu):
        if size := _size(cpu, buffer_type, type, shape):
            return size
    return 0


def _extra_buffer_types(cpu: int) -> list[int]:
    registry = devices.ggml("ggml_backend_dev_backend_reg")(cpu)
    address = devices.ggml("ggml_backend_reg_get_proc_address")(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    listed: Any = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(cpu)
    found: list[int] = []
    while listed and listed[len(found)]:
        found.append(listed[len(found)])
    return found


def _size(cpu: int, buffer_type: int, type: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes of the matrix in a buffer of this type; 0 where llama.cpp would not put it there."""
    rows, columns = shape
    context = _ggml("ggml_init")(_InitParams(8 * _ggml("ggml_tensor_overhead")(), None, True))
    try:
        matrix = _ggml("ggml_new_tensor_2d")(context, int(type), columns, rows)
        other = _ggml("ggml_new_tensor_2d")(context, F32, columns, COLUMNS)
        product = _ggml("ggml_mul_mat")(context, matrix, other)
        head = _TensorHead.from_address(matrix)
        head.buffer = _ggml("ggml_backend_buft_alloc_buffer")(buffer_type, 0)
        supported = _ggml("ggml_backend_dev_supports_op")(cpu, product)
        _ggml("ggml_backend_buffer_free")(head.buffer)
        head.buffer = None
        return _ggml("ggml_backend_buft_get_alloc_size")(buffer_type, matrix) if supported else 0
    finally:
        _ggml("ggml_free")(context)


def _ggml(name: str) -> Any:
    return devices.ggml(name, _SIGNATURES[name])
