"""Byte-literal builders of GGUF and safetensors files, honest and hostile. Nothing here uses the code under test."""

import json
import struct
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
T_F32, T_F16, T_Q4_0, T_Q8_0, T_Q4_K, T_BF16 = 0, 1, 2, 8, 12, 30
HUGE = 1 << 63


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def kv(key: str | bytes, type: int, payload: bytes) -> bytes:
    return string(key) + u32(type) + payload


def array(key: str, item_type: int, count: int, payload: bytes = b"") -> bytes:
    return kv(key, ARRAY, u32(item_type) + u64(count) + payload)


def info(name: str | bytes, dims: list[int], type: int, offset: int, n_dims: int | None = None) -> bytes:
    shape = b"".join(struct.pack("<Q", dim % (1 << 64)) for dim in dims)
    return string(name) + u32(len(dims) if n_dims is None else n_dims) + shape + u32(type) + u64(offset)


def gguf(
    kvs: list[bytes] = [],  # noqa: B006
    infos: list[bytes] = [],  # noqa: B006
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = u64(len(infos) if n_tensors is None else n_tensors) + u64(len(kvs) if n_kv is None else n_kv)
    head = magic + u32(version) + counts + b"".join(kvs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


ARCH = kv("general.architecture", STRING, string("gemma3"))
ONE = info("a.weight", [32], T_F32, 0)


def tensor(*dims: int, type: int = T_F32, offset: int = 0, data: int = 128) -> bytes:
    return gguf([ARCH], [info("a.weight", list(dims), type, offset)], bytes(data))


GGUF: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "magic"),
    "magic only": (b"GGUF", "version: needs 4 bytes"),
    "other magic": (b"GGML" + gguf()[4:], "magic: not a GGUF file"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "version 0": (gguf(version=0), "version 0 is not supported"),
    "version 1": (gguf(version=1), "version 1 is not supported"),
    "version 4": (gguf(version=4), "version 4 is not supported"),
    "byte-swapped": (b"GGUF" + bytes([0, 0, 0, 3]) + bytes(16), "big-endian"),
    "negative tensor count": (gguf(n_tensors=(1 << 64) - 1), "tensor count: -1"),
    "2^63 keys": (gguf(n_kv=HUGE), "KV count: -9223372036854775808"),
    "2^62 tensors": (gguf(n_tensors=1 << 62), "tensor count"),
    "more keys than bytes": (gguf(n_kv=60000)[:28], "KV 0 key: the file ends"),
    "empty key": (gguf([kv("", U8, b"\1")]), "KV 0 key: is empty"),
    "key with newline": (gguf([kv("a\nb", U8, b"\1")]), r"'a\\nb' is not a key"),
    "key not UTF-8": (gguf([kv(b"a\xff", U8, b"\1")]), "is not a key"),
    "duplicate key": (gguf([ARCH, ARCH]), "'general.architecture': the key occurs twice"),
    "oversize key": (gguf([kv("k" * 65536, U8, b"\1")]), "KV 0 key: a string of 65536 bytes"),
    "unknown value type": (gguf([kv("k", 13, b"\1")]), "unknown value type 13"),
    "bool 2": (gguf([kv("k", BOOL, b"\2")]), "a bool of value 2"),
    "string past the end": (gguf([kv("k", STRING, u64(100) + b"short")]), "string of 100 bytes does not fit"),
    "string of 2^63": (gguf([kv("k", STRING, u64(HUGE))]), "a string of 9223372036854775808 bytes"),
    "string of 2^64 - 1": (gguf([kv("k", STRING, u64(2 * HUGE - 1))]), "a string of 18446744073709551615 bytes"),
    "array longer than the file": (gguf([array("k", F32, 1 << 40)]), "1099511627776 items of FLOAT32 do not fit"),
    "array of 2^64 - 1": (gguf([array("k", U8, 2 * HUGE - 1)]), "do not fit"),
    "strings longer than the file": (gguf([array("k", STRING, 1 << 61)]), "items of STRING do not fit"),
    "last string of an array cut": (gguf([array("k", STRING, 2, string("ab") + u64(90))]), r"'k'\[1\]: a string of 90"),
    "array of arrays": (gguf([array("k", ARRAY, 1, u32(U8) + u64(1) + b"\1")]), "array of arrays"),
    "array of unknown items": (gguf([array("k", 99, 1, b"\1")]), "unknown value type 99"),
    "alignment 0": (gguf([kv("general.alignment", U32, u32(0))]), "general.alignment: 0 is not a power of two"),
    "alignment 3": (gguf([kv("general.alignment", U32, u32(3))]), "general.alignment: 3"),
    "alignment 2^31": (gguf([kv("general.alignment", U32, u32(1 << 31))]), "general.alignment: 2147483648"),
    "alignment u64": (gguf([kv("general.alignment", U64, u64(32))]), "general.alignment: is UINT64"),
    "5 dimensions": (tensor(1, 1, 1, 1, 32), "5 dimensions; 4 is the most"),
    "2^32 - 1 dimensions": (gguf([], [info("a", [], T_F32, 0, n_dims=(1 << 32) - 1)]), "4294967295 dimensions"),
    "negative dimension": (tensor(-32), "negative dimension"),
    "wrapping product": (tensor(1 << 32, 1 << 32), "too large for any file"),
    "wrapping product hidden by a zero": (tensor(1 << 40, 1 << 40, 0), "too large for any file"),
    "unknown tensor type": (tensor(32, type=31), "unknown tensor type 31"),
    "tensor type -1": (tensor(32, type=(1 << 32) - 1), "unknown tensor type"),
    "row not a block multiple": (tensor(33, type=T_Q8_0), "rows of 33 do not fit Q8_0 blocks of 32"),
    "misaligned": (gguf([], [ONE, info("b", [32], T_F32, 129)], bytes(300)), "offset 129 misaligned; 128 expected"),
    "overlapping": (gguf([], [ONE, info("b", [32], T_F32, 96)], bytes(300)), "offset 96 overlaps"),
    "hole": (gguf([], [ONE, info("b", [32], T_F32, 160)], bytes(300)), "offset 160 leaves a hole"),
    "first offset not 0": (tensor(32, offset=HUGE), "leaves a hole"),
    "past the end": (tensor(32, data=127), r"data ends at byte (\d+), the file at \d+"),
    "duplicate tensor": (gguf([], [ONE, ONE], bytes(300)), "'a.weight': the tensor occurs twice"),
    "name of 64 bytes": (gguf([], [info("n" * 64, [32], T_F32, 0)], bytes(128)), "tensor 0 name: a string of 64 bytes"),
    "empty name": (gguf([], [info("", [32], T_F32, 0)], bytes(128)), "tensor 0 name: is empty"),
    "name with NUL": (gguf([], [info("a\0b", [32], T_F32, 0)], bytes(128)), "is not a name"),
    "list of tensors cut": (gguf([ARCH], [ONE], n_tensors=2)[:-8], "tensor 1"),
}


def safetensors(header: dict[str, Any] | str | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw + data


def entry(shape: Any = [2, 3], offsets: Any = [0, 12], dtype: Any = "F16") -> dict[str, Any]:  # noqa: B006
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(data: int = 12, name: str = "a", **fields: Any) -> bytes:
    return safetensors({name: entry(**fields)}, bytes(data))


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes, too short"),
    "7 bytes": (bytes(7), "7 bytes, too short"),
    "header past the end": (safetensors("{}", length=100), "a header of 100 bytes, but the file has 10"),
    "header of 2^63": (safetensors("{}", length=HUGE), "over the limit"),
    "header over the cap": (safetensors("{}", length=100_000_001), "over the limit"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "byte 2 is not UTF-8"),
    "not JSON": (safetensors("{'a': 1}"), "not valid JSON"),
    "trailing junk": (safetensors("{} x"), "not valid JSON"),
    "a list": (safetensors("[]"), "holds a JSON list"),
    "depth 100000": (safetensors('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "duplicate tensor": (safetensors('{"a":1,"a":1}'), "the key 'a' occurs twice"),
    "duplicate field": (safetensors('{"a":{"dtype":"F16","dtype":"F32"}}'), "the key 'dtype' occurs twice"),
    "NaN in shape": (safetensors('{"a":{"dtype":"F16","shape":[NaN],"data_offsets":[0,2]}}'), "NaN is not JSON"),
    "1e400": (safetensors('{"a":{"dtype":"F16","shape":[1e400],"data_offsets":[0,2]}}'), "too large"),
    "a number of 100000 digits": (safetensors('{"a":' + "9" * 100_000 + "}"), "too large"),
    "float in shape": (one(shape=[2.0, 3]), "shape must be a list of whole numbers"),
    "bool in shape": (one(shape=[True, 6]), "shape must be"),
    "negative shape": (one(shape=[-2, -3]), "shape must be"),
    "negative offset": (one(offsets=[-12, 0]), "data_offsets must be"),
    "shape a string": (one(shape="ab"), "shape must be"),
    "three offsets": (one(offsets=[0, 12, 12]), "cannot be"),
    "nine dimensions": (one(shape=[6, 1, 1, 1, 1, 1, 1, 1, 1]), "cannot be"),
    "entry a list": (safetensors({"a": [1]}), "an entry has dtype"),
    "entry without shape": (safetensors({"a": {"dtype": "F16", "data_offsets": [0, 0]}}), "an entry has dtype"),
    "entry with more": (safetensors({"a": entry() | {"x": 1}}, bytes(12)), "and nothing else"),
    "metadata not strings": (safetensors({"__metadata__": {"a": 1}}), "__metadata__ must map strings"),
    "metadata a list": (safetensors({"__metadata__": ["a"]}), "__metadata__ must map strings"),
    "overlap": (safetensors({"a": entry(), "b": entry(offsets=[6, 18])}, bytes(18)), "'b' overlaps"),
    "same range twice": (safetensors({"a": entry(), "b": entry()}, bytes(12)), "'b' overlaps"),
    "hole": (safetensors({"a": entry(), "b": entry(offsets=[14, 26])}, bytes(26)), "'b' leaves a hole"),
    "hole at the start": (one(14, offsets=[2, 14]), "leaves a hole"),
    "trailing bytes": (one(13), "1 bytes after the last tensor"),
    "truncated data": (one(11), r"'a' ends at byte \d+, the file at \d+"),
    "begin after end": (one(offsets=[12, 0]), "cannot be"),
    "wrapping product": (one(shape=[1 << 62, 4], offsets=[0, 0]), "takes 36893488147419103232 bytes"),
    "2^63 in shape": (one(shape=[HUGE], offsets=[0, 0]), "shape must be"),
    "size against shape": (one(14, offsets=[0, 14]), r"F16 \[2, 3\] takes 12 bytes, data_offsets hold 14"),
    "unknown dtype": (one(dtype="F13"), "dtype 'F13'"),
    "dtype F8": (one(6, dtype="F8_E4M3", offsets=[0, 6]), "dtype 'F8_E4M3'; only BF16, F16, F32"),
    "dtype a list": (one(dtype=["F16"]), "dtype"),
    "name with NUL": (one(name="a\0b"), r"'a\\x00b': not a tensor name"),
    "name with newline": (one(name="a\nb"), "not a tensor name"),
    "name of a megabyte": (one(name="a" * (1 << 20)), "not a tensor name"),
    "empty name": (one(name=""), "not a tensor name"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", "pickle"),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(50), "zip archive"),
    "GGUF": (gguf([ARCH]), "a GGUF file"),
}
