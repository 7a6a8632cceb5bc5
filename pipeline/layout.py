"""GGUF layout: from metadata and typed tensors to a `FilePlan` whose every offset is known.

    magic "GGUF" | version u32 | tensor count u64 | KV count u64
    KV:     key string | value type u32 | value            string: length u64, UTF-8 bytes
    array:  item type u32 | count u64 | items
    tensor: name string | n_dims u32 | dims u64[n_dims], fastest first | type u32 | offset u64 from the data section
    padding to the alignment, then the data section: each tensor is padded, the last one too

Source: the GGUF specification, version 3. Little-endian throughout.
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION, GGUFValueType

from ..checkpoint.types import KV, SCALARS, GGMLQuantizationType, row_nbytes
from .plan import FilePlan, GGUFModel, TensorPlan


def lay_out(
    path: Path,
    model: GGUFModel,
    types: Sequence[GGMLQuantizationType],
    *,
    requested: Sequence[GGMLQuantizationType | None] | None = None,
    importance: Sequence[np.ndarray | None] | None = None,
    label: str = "",
    retype: tuple[tuple[str, str], ...] = (),
) -> FilePlan:
    """Plan one file: `types[i]` is what `model.tensors[i]` is written as, `importance[i]` its weights' importance.

    `requested[i]` is the type that its shape made it fall back from, for reports; `retype` is as in `FilePlan`. Raises
    ValueError when a row does not fit its type.
    """
    alignment = next((kv.value for kv in model.kv if kv.key == "general.alignment"), GGUF_DEFAULT_ALIGNMENT)
    sizes = [row_nbytes(type, t.n_per_row) * t.rows for t, type in zip(model.tensors, types, strict=True)]
    offsets = list(_offsets(sizes, alignment))
    infos = b"".join(
        _string(t.name) + struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *reversed(t.shape), type, offset)
        for t, type, offset in zip(model.tensors, types, offsets, strict=False)
    )
    start = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(model.tensors), len(model.kv))
    header = start + b"".join(encode_kv(kv) for kv in model.kv) + infos
    header += bytes(-len(header) % alignment)
    none = [None] * len(sizes)
    tensors = tuple(
        TensorPlan(*row)
        for row in zip(
            model.tensors,
            types,
            (len(header) + offset for offset in offsets),
            sizes,
            requested or none,
            importance or none,
            strict=False,
        )
    )
    return FilePlan(path, label, header, tensors, len(header) + offsets[-1], model, retype)


def _offsets(sizes: Iterable[int], alignment: int) -> Iterable[int]:
    """The offset of each tensor in the data section, and last the section's size."""
    offset = 0
    for size in sizes:
        yield offset
        offset += size + -size % alignment
    yield offset


def encode_kv(kv: KV) -> bytes:
    """The bytes of one metadata entry. Raises KeyError or struct.error for a value that its type cannot hold."""
    start = _string(kv.key) + struct.pack("<I", kv.type)
    if kv.type != GGUFValueType.ARRAY:
        return start + _encode(kv.type, kv.value)
    if kv.item_type is None:
        raise ValueError(f"{kv.key}: an array without an item type")
    start += struct.pack("<IQ", kv.item_type, len(kv.value))
    if kv.item_type == GGUFValueType.STRING:
        return start + _strings(kv.value)
    return start + np.asarray(kv.value, dtype=SCALARS[kv.item_type]).tobytes()


def _encode(type: GGUFValueType, value: object) -> bytes:
    if type == GGUFValueType.STRING:
        return _string(str(value))
    return np.array(value, dtype=SCALARS[type]).tobytes()


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Sequence[str]) -> bytes:
    """`texts` as GGUF strings, one after another: joined at once, since a vocabulary has 262144 of them."""
    room = "\0" * 8
    data = bytearray((room + room.join(texts)).encode("utf-8", "surrogateescape"))
    out = np.frombuffer(data, np.uint8)
    zeros = np.flatnonzero(out == 0)
    if zeros.size != 8 * len(texts):  # a text holds a NUL, or there is none
        return b"".join(map(_string, texts))
    begins = zeros[::8]
    lengths = np.diff(begins, append=out.size) - 8
    for byte in range(8):
        if (left := lengths >> 8 * byte).any():
            out[begins + byte] = left & 0xFF
    return bytes(data)
