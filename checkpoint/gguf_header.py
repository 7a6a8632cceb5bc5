"""Reads GGUF headers strictly: an accepted file has the layout that llama.cpp demands.

    magic "GGUF" | version u32 | tensor count i64 | KV count i64
    KV:     key | type u32 | value             (string: length u64, bytes; array: item type u32, count u64, items)
    tensor: name | n_dims u32 | dims i64 … (row length first) | type u32 | offset u64 (from the data section)
    padding to the alignment | data, every tensor padded to the alignment, in the order of the list

Every length is checked against the remaining bytes of the file and against a memory budget before it is used.
"""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from ..errors import InvalidInput
from .file_access import file_stamp, open_regular, quote, recognize
from .gguf_naming import model_stem
from .types import KV, SCALARS, GGMLQuantizationType, Slice

MAX_DIMS = 4
MAX_TENSOR_NAME = 63  # ggml keeps names in 64 bytes with a closing NUL
MAX_KEY = 65535  # the format's own limit
MAX_ALIGNMENT = 1 << 24
MAX_COUNT = 1 << 16  # keys, or tensors: about thirty times those of the largest models
MAX_STRING = 8 << 20
MAX_MEMORY = 128 << 20  # for all metadata; a vocabulary of 262144 with 514906 merges takes 60 MiB
DAMAGED = "the file is damaged or incomplete, fetch it again"


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The header of one GGUF, or of all shards of a split one (then `path`, `kv`, `data_offset` are the first shard's).

    `tensors` keeps file order; a split file's `split.*` keys stay in `kv`.
    """

    path: Path
    version: int
    alignment: int
    kv: tuple[KV, ...]
    tensors: dict[str, Slice]
    data_offset: int

    @property
    def stem(self) -> str:
        """The file name without its type suffix."""
        return model_stem(self.path)

    def find(self, key: str) -> KV | None:
        return next((kv for kv in self.kv if kv.key == key), None)

    def value(self, key: str, default: Any = None) -> Any:
        entry = self.find(key)
        return default if entry is None else entry.value


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    """A tensor info entry: `offset` counts from the data section, `at` is the file position of that field."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    at: int


def read_header(path: Path) -> GGUFFile:
    """Reads the header of this file alone, without other shards of a split GGUF. Raises InvalidInput."""
    file, size = open_regular(path)
    with file:
        return _Reader(file, path, size).read()


class _Reader:
    """Parses one header. `pos` is the offset of the next byte, `memory` the bytes of memory left in the budget."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.stamp = file_stamp(path, file)
        self.pos = 0
        self.memory = MAX_MEMORY

    def fail(self, field: str, problem: str, at: int | None = None) -> NoReturn:
        raise InvalidInput(f"{self.path}: byte {self.pos if at is None else at}: {field}: {problem}")

    def read(self) -> GGUFFile:
        version = self.version()
        n_tensors, n_kv = self.count("tensor count"), self.count("KV count")
        kv: dict[str, KV] = {}
        for index in range(n_kv):
            self.entry(f"KV {index}", kv)
        alignment = self.alignment(kv)
        infos: dict[str, _TensorInfo] = {}
        for index in range(n_tensors):
            self.info(f"tensor {index}", infos)
        if self.file.tell() != self.pos:
            self.fail("header", "the file changed while it was read")
        data_offset = _pad(self.pos, alignment) if infos else self.pos
        tensors = self.place(infos, data_offset, alignment)
        return GGUFFile(self.path, version, alignment, tuple(kv.values()), tensors, data_offset)

    # ---- primitives

    def take(self, n: int, field: str) -> bytes:
        if n > self.size - self.pos:
            self.fail(field, f"needs {n} bytes, but the file ends after {self.size - self.pos}; {DAMAGED}")
        self.pos += n
        return self.file.read(n)

    def spend(self, nbytes: int, field: str) -> None:
        self.memory -= nbytes
        if self.memory < 0:
            self.fail(field, f"the metadata needs more than {MAX_MEMORY >> 20} MiB; no model has that much")

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def i64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little", signed=True)

    def u64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little")

    def string(self, field: str, limit: int = MAX_STRING) -> str:
        return self.strings(1, field, limit)[0]

    def strings(self, count: int, field: str, limit: int = MAX_STRING) -> tuple[str, ...]:
        """Reads `count` strings of at most `limit` bytes. Inlined, since vocabularies have 262144 strings."""
        read, from_bytes, getsizeof = self.file.read, int.from_bytes, sys.getsizeof
        left, spent = self.size - self.pos, 0
        texts: list[str] = []
        for _ in range(count):
            length = from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0 or length > limit or spent > self.memory:
                self.pos = self.size - left - length - 8
                self.bad_string(f"{field}[{len(texts)}]" if count > 1 else field, length, limit, spent)
            text = read(length).decode("utf-8", "surrogateescape")
            spent += getsizeof(text) + 8
            texts.append(text)
        self.pos = self.size - left
        self.spend(spent, field)
        return tuple(texts)

    def bad_string(self, field: str, length: int, limit: int, spent: int) -> NoReturn:
        self.spend(spent, field)
        if self.size - self.pos < 8:
            self.fail(field, f"the file ends inside a length; {DAMAGED}")
        if length > limit:
            self.fail(field, f"a string of {length} bytes; {limit} is the most")
        self.fail(field, f"a string of {length} bytes does not fit into the rest of the file; {DAMAGED}")

    # ---- the parts of a header

    def version(self) -> int:
        head = self.file.read(64)
        self.file.seek(0)
        if head[:4] != b"GGUF":
            self.fail("magic", f"not a GGUF file but {recognize(head) or 'of an unknown format'}")
        self.take(4, "magic")
        version = self.u32("version")
        if version and version & 0xFFFF == 0:
            self.fail("version", "a big-endian GGUF, and this machine's are little-endian; get the other one", 4)
        if version not in (2, 3):
            self.fail("version", f"GGUF version {version} is not supported (2 and 3 are)", 4)
        return version

    def count(self, field: str) -> int:
        at, count = self.pos, self.i64(field)
        if not 0 <= count <= MAX_COUNT:
            self.fail(field, f"{count} is not between 0 and {MAX_COUNT}", at)
        return count

    def entry(self, field: str, seen: dict[str, KV]) -> None:
        at, key = self.pos, self.string(f"{field} key", MAX_KEY)
        if not key or not key.isprintable():
            self.fail(f"{field} key", f"{quote(key)} is not a key" if key else "is empty", at)
        if key in seen:
            self.fail(quote(key), "the key occurs twice", at)
        self.spend(256, key)
        type = self.value_type(quote(key))
        if type is GGUFValueType.ARRAY:
            item_type = self.value_type(f"{quote(key)} item type")
            seen[key] = KV(key, type, self.array(item_type, quote(key)), item_type)
        else:
            seen[key] = KV(key, type, self.items(type, 1, quote(key))[0])

    def value_type(self, field: str) -> GGUFValueType:
        at, number = self.pos, self.u32(field)
        try:
            return GGUFValueType(number)
        except ValueError:
            self.fail(field, f"unknown value type {number}", at)

    def array(self, item_type: GGUFValueType, field: str) -> tuple[Any, ...]:
        if item_type is GGUFValueType.ARRAY:
            self.fail(field, "an array of arrays, which llama.cpp does not read", self.pos - 4)
        at, count = self.pos, self.u64(f"{field} length")
        least = 8 if item_type is GGUFValueType.STRING else np.dtype(SCALARS[item_type]).itemsize
        if count > (self.size - self.pos) // least:
            self.fail(field, f"{count} items of {item_type.name} do not fit into the rest of the file; {DAMAGED}", at)
        return self.items(item_type, count, field)

    def items(self, type: GGUFValueType, count: int, field: str) -> tuple[Any, ...]:
        if type is GGUFValueType.STRING:
            return self.strings(count, field)
        at, dtype = self.pos, np.dtype(SCALARS[type])
        self.spend(count * 40, field)  # bytes of a Python number and its slot in a tuple
        values = np.frombuffer(self.take(count * dtype.itemsize, field), dtype)
        if type is not GGUFValueType.BOOL:
            return tuple(values.tolist())
        if values.size and values.max() > 1:
            self.fail(field, f"a bool of value {values.max()}", at)
        return tuple(values.astype(bool).tolist())

    def alignment(self, kv: dict[str, KV]) -> int:
        entry = kv.get("general.alignment")
        if entry is None:
            return GGUF_DEFAULT_ALIGNMENT
        value = entry.value
        if entry.type is not GGUFValueType.UINT32:
            self.fail("general.alignment", f"is {entry.type.name}, not UINT32")
        if value < 8 or value > MAX_ALIGNMENT or value & (value - 1):
            self.fail("general.alignment", f"{value} is not a power of two between 8 and {MAX_ALIGNMENT}")
        return value

    def info(self, field: str, seen: dict[str, _TensorInfo]) -> None:
        at, name = self.pos, self.string(f"{field} name", MAX_TENSOR_NAME)
        if not name or not name.isprintable():
            self.fail(f"{field} name", f"{quote(name)} is not a name" if name else "is empty", at)
        if name in seen:
            self.fail(quote(name), "the tensor occurs twice", at)
        n_dims = self.u32(f"{quote(name)} n_dims")
        if n_dims > MAX_DIMS:
            self.fail(quote(name), f"{n_dims} dimensions; {MAX_DIMS} is the most", self.pos - 4)
        dims = struct.unpack(f"<{n_dims}q", self.take(8 * n_dims, f"{quote(name)} dims"))
        type = self.tensor_type(quote(name), dims)
        at = self.pos
        seen[name] = _TensorInfo(type, dims[::-1], self.u64(f"{quote(name)} offset"), at)

    def tensor_type(self, field: str, dims: tuple[int, ...]) -> GGMLQuantizationType:
        """Reads the type; refuses rows that do not fill whole blocks and sizes of 2**63 bytes or more."""
        at, number = self.pos, self.u32(f"{field} type")
        if any(dim < 0 for dim in dims):
            self.fail(field, f"negative dimension in {list(dims)}", at - 8 * len(dims))
        try:
            type = GGMLQuantizationType(number)
        except ValueError:
            self.fail(field, f"unknown tensor type {number}", at)
        row, size = (dims or (1,))[0], type.nbytes
        if row % type.block:
            self.fail(field, f"rows of {row} do not fit {type.name} blocks of {type.block}", at)
        for dim in dims:  # counts a zero as one, so that it cannot hide an overflow
            size *= dim or 1
        if size >= 1 << 63:
            self.fail(field, f"shape {list(dims)} is too large for any file", at - 8 * len(dims))
        return type

    def place(self, infos: dict[str, _TensorInfo], start: int, alignment: int) -> dict[str, Slice]:
        """Turns offsets into slices. As in llama.cpp, each tensor begins at the padded end of the one before."""
        tensors: dict[str, Slice] = {}
        expected = 0
        for name, info in infos.items():
            offset = info.offset
            if offset != expected:
                fault = "misaligned" if offset % alignment else "overlaps the last tensor"
                fault = "leaves a hole" if offset > expected and offset % alignment == 0 else fault
                self.fail(quote(name), f"offset {offset} {fault}; {expected} expected", info.at)
            tensors[name] = slice = Slice(self.path, start + offset, info.type, info.shape, stamp=self.stamp)
            end = offset + slice.nbytes
            if start + end > self.size:
                self.fail(quote(name), f"data ends at byte {start + end}, the file at {self.size}; {DAMAGED}", info.at)
            expected = _pad(end, alignment)
        return tensors


def _pad(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
