"""Reads importance matrices that llama-imatrix wrote, as GGUF or in the older binary format.

    GGUF:   per tensor `NAME.in_sum2` F32 [matrices, n_per_row] and `NAME.counts` F32 [matrices, 1];
            imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
    binary: i32 entries | per entry: i32 length, name | i32 calls | i32 values | f32 … | then, optionally,
            i32 chunks | i32 length, name of the dataset               (everything little-endian)

A tensor's importance is, per column, the mean square of the activations that the column is multiplied with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGUFValueType

from ..errors import InvalidInput
from .file_access import open_regular, quote, recognize
from .gguf_header import GGUFFile, read_header
from .types import KV, GGMLQuantizationType, Slice

MAX_BYTES = 256 << 20
"""The largest file size: ten times that of the largest Gemma 3."""

MAX_VALUE = 1e15
"""The largest mean square, from activations of 30 million. ggml squares sums of these values in float32."""

MAX_NAME = 255
MAX_DATASET = 1 << 16
DAMAGED = "the file is damaged, or no importance matrix"


@dataclass(frozen=True, slots=True, eq=False)
class Imatrix:
    """`entries`: tensor name → float32 [experts × n_per_row], finite and not negative (one expert in dense models)."""

    datasets: tuple[str, ...]
    entries: dict[str, np.ndarray]
    chunk_count: int


def read_imatrix(path: Path) -> Imatrix:
    """Reads an importance matrix of either format. Raises InvalidInput for any other file."""
    file, size = open_regular(path)
    with file:
        if size > MAX_BYTES:
            raise InvalidInput(f"{path}: {size} bytes are more than any importance matrix has")
        head = file.read(4)
        file.seek(0)
        return _read_gguf(read_header(path), file) if head == b"GGUF" else _read_binary(path, file, size)


def _read_gguf(header: GGUFFile, file: BinaryIO) -> Imatrix:
    path = header.path
    datasets, chunk_count = _gguf_metadata(header)
    pairs: dict[str, dict[str, Slice]] = {}
    for full_name, slice in header.tensors.items():
        name, _, part = full_name.rpartition(".")
        if part in ("in_sum2", "counts"):
            pairs.setdefault(name, {})[part] = slice
    if not pairs:
        raise InvalidInput(f"{path}: a GGUF without importance values; give a file that llama-imatrix made")
    entries = {}
    for name, pair in sorted(pairs.items()):
        if len(pair) < 2:
            raise InvalidInput(
                f"{path}: {quote(name)} has no {'counts' if 'in_sum2' in pair else 'in_sum2'}; {DAMAGED}"
            )
        sums, counts = (_floats(path, name, file, pair[part]) for part in ("in_sum2", "counts"))
        entries[name] = _check_values(path, name, _means(path, name, sums, counts))
    return Imatrix(datasets, entries, chunk_count)


def _gguf_metadata(header: GGUFFile) -> tuple[tuple[str, ...], int]:
    """Returns (datasets, chunk count); requires all three imatrix keys."""
    datasets = _entry(header, "imatrix.datasets", GGUFValueType.ARRAY)
    chunks = _entry(header, "imatrix.chunk_count", GGUFValueType.UINT32).value
    _entry(header, "imatrix.chunk_size", GGUFValueType.UINT32)
    names = tuple(datasets.value) if datasets.item_type is GGUFValueType.STRING else ()
    return names, chunks if chunks < 1 << 31 else 0


def _entry(header: GGUFFile, key: str, type: GGUFValueType) -> KV:
    entry = header.find(key)
    if entry is None or entry.type is not type:
        fault = "is missing" if entry is None else f"is {entry.type.name}, not {type.name}"
        raise InvalidInput(f"{header.path}: {key} {fault}; give a file that llama-imatrix made")
    return entry


def _floats(path: Path, name: str, file: BinaryIO, slice: Slice) -> np.ndarray:
    if slice.type is not GGMLQuantizationType.F32:
        raise InvalidInput(f"{path}: {quote(name)} is {slice.type.name}, not F32; {DAMAGED}")
    file.seek(slice.offset)
    data = file.read(slice.nbytes)
    if len(data) != slice.nbytes:
        raise InvalidInput(f"{path}: {quote(name)} ends too early; {DAMAGED}")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _means(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divides sums by counts for each expert, in llama.cpp's arithmetic; an expert that was never used gets 1."""
    if not counts.size or sums.size % counts.size:
        raise InvalidInput(f"{path}: {quote(name)} has {sums.size} values for {counts.size} counts; {DAMAGED}")
    if not np.isfinite(counts).all():
        raise InvalidInput(f"{path}: {quote(name)} has a count that is not finite; {DAMAGED}")
    counts = counts.astype(np.float64)
    rounded = np.trunc(counts + np.copysign(0.5, counts)).astype(np.float32)[:, None]
    rows = sums.reshape(counts.size, -1)
    with np.errstate(all="ignore"):  # `_check_values` names what is not finite
        return np.where(rounded > 0, rows / np.where(rounded > 0, rounded, 1), np.float32(1)).ravel()


def _check_values(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Returns `values`; refuses NaN, infinite, negative and huge ones, which no mean square of activations is."""
    if values.size and MAX_VALUE < values.max() < np.inf:
        raise InvalidInput(
            f"{path}: {quote(name)} has a value of {values.max():.3g}, and weights times that overflow; no activations "
            "are so large: collect the matrix again"
        )
    if not values.size or not (np.isfinite(values).all() and values.min() >= 0):
        raise InvalidInput(f"{path}: {quote(name)} has values that are negative or not finite; {DAMAGED}")
    values.flags.writeable = False
    return values


class _BinaryReader:
    """Reads fields of the binary format, checking every length against the remaining bytes of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.left = path, file, size

    def take(self, nbytes: int, field: str) -> bytes:
        data = self.file.read(nbytes) if 0 <= nbytes <= self.left else b""
        if nbytes < 0 or len(data) != nbytes:
            raise InvalidInput(f"{self.path}: {field} takes {nbytes} bytes where {self.left} are left; {DAMAGED}")
        self.left -= nbytes
        return data

    def number(self, field: str, low: int, high: int = (1 << 31) - 1) -> int:
        value = int.from_bytes(self.take(4, field), "little", signed=True)
        if not low <= value <= high:
            raise InvalidInput(f"{self.path}: {field} is {value}; {DAMAGED}")
        return value

    def text(self, field: str, low: int, high: int) -> str:
        data = self.take(self.number(f"the length of {field}", low, high), field)
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_binary(path: Path, file: BinaryIO, size: int) -> Imatrix:
    file_format = recognize(file.read(16))
    if file_format:
        raise InvalidInput(f"{path}: {file_format}, not an importance matrix")
    file.seek(0)
    reader = _BinaryReader(path, file, size)
    entries: dict[str, np.ndarray] = {}
    for _ in range(reader.number("the number of entries", 1, size // 16)):
        name = reader.text("a tensor's name", 1, MAX_NAME)
        if name in entries:
            raise InvalidInput(f"{path}: {quote(name)} occurs twice; {DAMAGED}")
        calls = reader.number(f"the calls of {quote(name)}", -(1 << 31))
        count = reader.number(f"the number of values of {quote(name)}", 1)
        values = np.frombuffer(reader.take(4 * count, quote(name)), "<f4").astype(np.float32)
        entries[name] = _check_values(path, name, values / np.float32(calls) if calls > 0 else values)
    chunks = reader.number("the number of chunks", -(1 << 31)) if reader.left else 0
    datasets = (reader.text("the dataset's name", 0, MAX_DATASET),) if reader.left else ()
    if reader.left:
        raise InvalidInput(f"{path}: {reader.left} bytes follow the end; {DAMAGED}")
    return Imatrix(tuple(name for name in datasets if name), entries, max(chunks, 0))
