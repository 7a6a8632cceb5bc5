"""The metadata of a quantized file: changes to that of its source, in the order llama-quantize writes them."""

import struct
from collections.abc import Iterable, Sequence

from gguf.constants import GGUFValueType

from ..checkpoint.local_paths import is_local_model, last_part
from ..checkpoint.types import KV, GGMLQuantizationType
from ..errors import InvalidInput

T = GGMLQuantizationType

QUANTIZATION_VERSION = 2
GUESSED = 1024
"""The flag of a file type that llama.cpp guessed from the tensors, because the source names none."""

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_OVERRIDE_TYPES = {
    "int": GGUFValueType.UINT32,
    "float": GGUFValueType.FLOAT32,
    "bool": GGUFValueType.BOOL,
    "str": GGUFValueType.STRING,
}
_STRING_BYTES = 127

_COMMON_FTYPE = {
    T.F32: 0, T.F16: 1, T.BF16: 32, T.Q4_0: 2, T.Q4_1: 3, T.Q5_0: 8, T.Q5_1: 9, T.Q8_0: 7, T.Q2_K: 10, T.Q3_K: 12,
    T.Q4_K: 15, T.Q5_K: 17, T.Q6_K: 18, T.TQ1_0: 36, T.TQ2_0: 37, T.IQ2_XXS: 19, T.IQ2_XS: 20, T.IQ2_S: 28,
    T.IQ3_XXS: 23, T.IQ1_S: 24, T.IQ1_M: 31, T.IQ4_NL: 25, T.IQ4_XS: 30, T.IQ3_S: 26, T.NVFP4: 39, T.Q1_0: 40,
    T.Q2_0: 41,
}  # fmt: skip


def quantized_kv(kv: Sequence[KV], file_type: int, overrides: Sequence[KV] = ()) -> tuple[KV, ...]:
    """`kv` of the source in its order, without `split.*`, with the two keys of a quantized file at the end.

    An override, like these two, leaves its old place and is appended. Values are not looked at.
    """
    written = [
        KV("general.quantization_version", GGUFValueType.UINT32, QUANTIZATION_VERSION),
        KV("general.file_type", GGUFValueType.UINT32, file_type),
    ]
    entries = {entry.key: entry for entry in kv}
    for entry in [*written, *overrides]:
        entries.pop(entry.key, None)
        entries[entry.key] = entry
    return tuple(entry for key, entry in entries.items() if key not in _SPLIT_KEYS)


def imatrix_kv(file_name: str, datasets: Sequence[str], entries: int, chunks: int) -> tuple[KV, ...]:
    """The metadata entries about an importance matrix, to be written as overrides; none when it has no entries.

    `file_name` is the base name: a path would reveal a local folder, and change the file's hash. Of a dataset that
    is a path of the computer the matrix was made on, only the last part is written.
    """
    if not entries:
        return ()
    kv = [KV("quantize.imatrix.file", GGUFValueType.STRING, _cut(file_name))]
    if datasets:
        dataset = last_part(datasets[0]) if is_local_model(datasets[0]) else datasets[0]
        kv.append(KV("quantize.imatrix.dataset", GGUFValueType.STRING, _cut(dataset)))
    kv.append(KV("quantize.imatrix.entries_count", GGUFValueType.UINT32, entries))
    if chunks > 0:
        kv.append(KV("quantize.imatrix.chunks_count", GGUFValueType.UINT32, chunks))
    return tuple(kv)


def parse_override(text: str) -> KV:
    """`KEY=TYPE:VALUE` of `--override-kv`; TYPE is int (unsigned, 32 bits), float (32 bits), bool or str."""
    key, equals, rest = text.partition("=")
    type_name, colon, value = rest.partition(":")
    short = len(key.encode("utf-8", "surrogateescape")) <= _STRING_BYTES
    if not (key and equals and colon and type_name in _OVERRIDE_TYPES and short):
        raise InvalidInput(f"--override-kv {text!r}: write KEY=TYPE:VALUE with TYPE int, float, bool or str")
    if key in ("general.alignment", *_SPLIT_KEYS):
        raise InvalidInput(f"--override-kv {text!r}: {key} says where tensors lie, and cannot be set")
    parsed = _override_value(type_name, value)
    if parsed is None:
        raise InvalidInput(f"--override-kv {text!r}: {value!r} is not a value of type {type_name}")
    return KV(key, _OVERRIDE_TYPES[type_name], parsed)


def file_type_of(kv: Iterable[KV], types: Iterable[GGMLQuantizationType]) -> int:
    """The `general.file_type` of a source, or llama.cpp's guess from its tensors' `types` in file order (for COPY)."""
    for entry in kv:
        if entry.key == "general.file_type":
            return int(entry.value)
    counts: dict[GGMLQuantizationType, int] = {}
    most, most_count = T.F32, 0
    for type in types:
        counts[type] = counts.get(type, 0) + 1
        if counts[type] > most_count:
            most, most_count = type, counts[type]
    return _COMMON_FTYPE.get(most, 0) | GUESSED


def _override_value(type_name: str, text: str) -> int | float | bool | str | None:
    """`text` as a value, None when it is none."""
    try:
        if type_name == "int":
            number = int(text)
            return number if 0 <= number < 1 << 32 else None
        if type_name == "float":
            return struct.unpack("<f", struct.pack("<f", float(text)))[0]
    except (ValueError, OverflowError):
        return None
    if type_name == "bool":
        return {"true": True, "false": False}.get(text)
    return text if len(text.encode("utf-8", "surrogateescape")) <= _STRING_BYTES else None


def _cut(text: str) -> str:
    """`text` as llama-quantize keeps it: 127 bytes at most, which may end inside of a character."""
    data = text.encode("utf-8", "surrogateescape").partition(b"\0")[0]
    return data[:_STRING_BYTES].decode("utf-8", "surrogateescape")
