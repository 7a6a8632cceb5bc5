"""The lattices behind IQ1, IQ2 and IQ3: their points, read off the loaded ggml's decoder.

Those types store groups of 8 (IQ3: 4) magnitudes as the index of a lattice point. Decoding blocks that hold every
index gives every point; a coordinate's level is the rank of its value among all values.
"""

import ctypes
from threading import Lock

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from . import ggml

T = GGMLQuantizationType

SHAPES = {
    T.IQ2_XXS: (256, 8),
    T.IQ2_XS: (512, 8),
    T.IQ2_S: (1024, 8),
    T.IQ3_XXS: (256, 4),
    T.IQ3_S: (512, 4),
    T.IQ1_S: (2048, 8),
}
"""Points of each lattice, and their coordinates. IQ1_M has IQ1_S's."""


_built: set[GGMLQuantizationType] = set()
_lock = Lock()


def build(library: ctypes.CDLL, type: GGMLQuantizationType) -> None:
    """Give the native `library` the lattice of `type`, once. Milliseconds, where ggml's own tables take seconds."""
    type = T.IQ1_S if type == T.IQ1_M else type
    if type in _built:
        return
    with _lock:
        if type in _built:
            return
        points = levels(type)
        if not library.borealis_set_lattice(type, *points.shape, points.ctypes.data_as(ctypes.c_char_p)):
            raise MemoryError(f"the lattice of {type.name} cannot be built")
        _built.add(type)


def levels(type: GGMLQuantizationType) -> np.ndarray:
    """The points of a key of SHAPES in the order of their indices, as levels 0, 1, ...: uint8 [points, coordinates]."""
    points, coordinates = SHAPES[type]
    index = np.arange(points).reshape(-1, 256 // coordinates)
    blocks = np.zeros((len(index), GGML_QUANT_SIZES[type][1]), np.uint8)
    blocks[:, 0:2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    _PLACE[type](blocks, index)
    values = ggml.decode(blocks, type, 256).reshape(points, coordinates)
    distinct, ranks = np.unique(values, return_inverse=True)
    if len(distinct) != (3 if coordinates == 8 else 8):
        raise ValueError(f"{type.name}: ggml decodes {len(distinct)} different magnitudes")
    return ranks.reshape(values.shape).astype(np.uint8)


def _bits(values: np.ndarray, width: int, each: int) -> np.ndarray:
    """Packs neighbouring values [n, k * each] of `width` bits, the first one lowest: [n, k] words of each * width bits."""
    grouped = values.reshape(len(values), -1, each) << (width * np.arange(each))
    return grouped.sum(axis=2)


def _iq2_xxs(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:].reshape(len(blocks), 8, 8)[:, :, :4] = index.reshape(-1, 8, 4)


def _iq2_xs(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:66] = index.astype("<u2").view(np.uint8)


def _iq2_s(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:34] = index & 255
    blocks[:, 66:74] = _bits(index >> 8, 2, 4)


def _iq3_xxs(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:66] = index


def _iq3_s(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:66] = index & 255
    blocks[:, 66:74] = _bits(index >> 8, 1, 8)


def _iq1_s(blocks: np.ndarray, index: np.ndarray) -> None:
    blocks[:, 2:34] = index & 255
    blocks[:, 34:50] = _bits(index >> 8, 3, 4).astype("<u2").view(np.uint8)


_PLACE = {
    T.IQ2_XXS: _iq2_xxs,
    T.IQ2_XS: _iq2_xs,
    T.IQ2_S: _iq2_s,
    T.IQ3_XXS: _iq3_xxs,
    T.IQ3_S: _iq3_s,
    T.IQ1_S: _iq1_s,
}
"""Writes the index of every group into the fields of blocks that are otherwise empty: no signs, smallest scale."""
