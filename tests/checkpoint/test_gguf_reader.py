"""The GGUF reader against gguf-py and ggml on honest files, and against hostile ones."""

import ctypes
import importlib.util
import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from borealis_gguf.checkpoint.gguf import GGUFFile, read_gguf
from borealis_gguf.checkpoint.gguf_validation import check_model
from borealis_gguf.errors import InvalidInput

from ..helpers import attacks as a
from ..helpers.memory_limits import read_apart

# Not Q8_1, a type of intermediate results only: gguf-py gives it 40 bytes a block, ggml and we 36.
TENSOR_TYPES = [type for type in GGMLQuantizationType if type is not GGMLQuantizationType.Q8_1]
FIXTURES = [HealthCheck.function_scoped_fixture]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


# ---- honest files


def write_everything(path: Path) -> None:
    """A file with every value type and every tensor type gguf-py knows."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for type in (int_types := ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")):
        bits = int(type.lstrip("uint"))
        getattr(writer, f"add_{type}")(f"k.{type}", 2 ** (bits - 1) - 1 if type[0] == "i" else 2**bits - 1)
    assert len(int_types) == 8
    writer.add_float32("k.float32", 0.1)
    writer.add_float64("k.float64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "blåbærsyltetøy 🫐")
    writer.add_array("k.strings", ["<bos>", "▁på", "x" * 3000])
    writer.add_array("k.floats", [1.5, -0.0, float("inf")])
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.bools", [True, False])
    writer.add_key_value("k.bytes", bytes(range(200)), GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT8)
    for index, type in enumerate(TENSOR_TYPES):
        block, nbytes = GGML_QUANT_SIZES[type]
        shape = (3, 2 * block) if index % 2 else (2, 3, block)
        data = np.arange(np.prod(shape) // block * nbytes, dtype=np.uint8)
        writer.add_tensor(f"t.{type.name}", data.reshape(*shape[:-1], -1), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_agrees_with_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "blå bær.gguf"
    write_everything(path)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = [field for name, field in theirs.fields.items() if not name.startswith("GGUF.")]
    assert [kv.key for kv in ours.kv] == [field.name for field in fields]
    for kv, field in zip(ours.kv, fields, strict=True):
        assert [kv.type, *([kv.item_type] if kv.item_type is not None else [])] == field.types, kv.key
        value = field.contents()
        assert kv.value == (tuple(value) if isinstance(value, list) else value), kv.key
    assert (ours.version, ours.alignment, ours.data_offset) == (3, theirs.alignment, theirs.data_offset)
    assert len(ours.tensors) == len(TENSOR_TYPES)
    for (name, slice), tensor in zip(ours.tensors.items(), theirs.tensors, strict=True):
        assert name == tensor.name and slice.path == path
        assert slice.type == tensor.tensor_type
        assert slice.shape == tuple(reversed(tensor.shape.tolist()))
        assert (slice.offset, slice.nbytes) == (tensor.data_offset, tensor.n_bytes)


def test_value_types_are_pythons_own(tmp_path: Path) -> None:
    write_everything(tmp_path / "a.gguf")
    file = read_gguf(tmp_path / "a.gguf")
    assert type(file.value("k.uint64")) is int and file.value("k.uint64") == 2**64 - 1
    assert type(file.value("k.bool")) is bool and type(file.value("k.float32")) is float
    assert file.value("k.float32") == float(np.float32(0.1)) and file.value("k.float64") == 0.1
    assert all(type(item) is bool for item in file.value("k.bools"))
    assert file.value("absent") is None and file.value("absent", 7) == 7


def test_version_2_has_the_same_layout(tmp_path: Path) -> None:
    write_everything(tmp_path / "3.gguf")
    data = bytearray((tmp_path / "3.gguf").read_bytes())
    data[4:8] = a.u32(2)
    third, second = read_gguf(tmp_path / "3.gguf"), read_gguf(put(tmp_path / "2.gguf", bytes(data)))
    assert second.version == 2 and second.kv == third.kv
    assert [s.offset for s in second.tensors.values()] == [s.offset for s in third.tensors.values()]


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    raw = b"\xff\xfe ok \xe2\x82"
    file = read_gguf(put(tmp_path / "a.gguf", a.gguf([a.kv("k", a.STRING, a.string(raw))])))
    assert file.value("k").encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    kv = a.kv("general.alignment", a.U32, a.u32(alignment))
    infos = [a.info("x", [3], a.T_F32, 0), a.info("y", [3], a.T_F32, alignment)] if alignment > 8 else []
    file = read_gguf(put(tmp_path / "a.gguf", a.gguf([kv], infos, bytes(2 * alignment), alignment=alignment)))
    assert file.alignment == alignment
    if infos:
        assert file.data_offset % alignment == 0
        assert [s.offset - file.data_offset for s in file.tensors.values()] == [0, alignment]


@pytest.mark.parametrize(
    ("dims", "shape", "nbytes"), [([], (), 4), ([0], (0,), 0), ([32, 0], (0, 32), 0), ([4, 2, 1, 3], (3, 1, 2, 4), 96)]
)
def test_odd_shapes(tmp_path: Path, dims: list[int], shape: tuple[int, ...], nbytes: int) -> None:
    slice = read_gguf(put(tmp_path / "a.gguf", a.tensor(*dims, data=96))).tensors["a.weight"]
    assert (slice.shape, slice.nbytes) == (shape, nbytes)


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    data = a.gguf([], [a.info("x", [5], a.T_F32, 0)], bytes(20))
    assert read_gguf(put(tmp_path / "a.gguf", data)).tensors["x"].nbytes == 20


# ---- hostile files


@pytest.mark.parametrize("name", a.GGUF)
def test_hostile(tmp_path: Path, name: str) -> None:
    data, expected = a.GGUF[name]
    path = put(tmp_path / "evil.gguf", data)
    message = refused(lambda: read_gguf(path))
    assert message.startswith(f"{path}: byte ")
    assert re.search(expected, message), message


def test_not_a_file(tmp_path: Path) -> None:
    assert "not a file but a folder" in refused(lambda: read_gguf(tmp_path))
    assert "no such file" in refused(lambda: read_gguf(tmp_path / "absent.gguf"))
    assert "not a file" in refused(lambda: read_gguf(Path(os.devnull)))  # a device; a pipe would block


def test_hostile_files_take_little_time_and_memory(tmp_path: Path) -> None:
    """Every builder's file, and sparse ones of a gigabyte whose claims are therefore true."""
    paths = [put(tmp_path / f"{index}.gguf", data) for index, (data, _) in enumerate(a.GGUF.values())]
    big = {
        "strings": [a.array("k", a.STRING, 100_000_000)],
        "numbers": [a.array("k", a.U8, 1_000_000_000)],
        "one string": [a.kv("k", a.STRING, a.u64(1_000_000_000))],
        "wide string": [a.array("k", a.STRING, 40, a.string("🫐".encode() + b"a" * 8_000_000) * 8)],
        "keys": [a.kv(f"k{index}", a.U8, b"\0") for index in range(60_000)],
    }
    for name, kvs in big.items():
        path = put(tmp_path / f"{name}.gguf", a.gguf(kvs, n_kv=65_000))
        with path.open("r+b") as file:
            file.truncate(1 << 30)
        paths.append(path)
    results, peak = read_apart("gguf", *paths)
    assert all(result["message"] for result in results)
    assert max(result["seconds"] for result in results) < 2
    assert peak < 256 << 20, f"{peak >> 20} MiB"


def test_a_large_vocabulary_is_quick(tmp_path: Path) -> None:
    """262144 tokens with scores and types, and 514906 merges, as large Gemma vocabularies have."""
    pieces = [f"▁tøken{index}".encode() for index in range(262_144)]
    merges = [b"tok en%d" % index for index in range(514_906)]
    kvs = [
        a.array("tokenizer.ggml.tokens", a.STRING, len(pieces), b"".join(map(a.string, pieces))),
        a.array("tokenizer.ggml.scores", a.F32, len(pieces), np.arange(len(pieces), dtype="<f4").tobytes()),
        a.array("tokenizer.ggml.token_type", a.I32, len(pieces), np.ones(len(pieces), "<i4").tobytes()),
        a.array("tokenizer.ggml.merges", a.STRING, len(merges), b"".join(map(a.string, merges))),
    ]
    path = put(tmp_path / "vocab.gguf", a.gguf(kvs))
    (result,), peak = read_apart("gguf", path)
    assert result["message"] is None
    assert result["seconds"] < 1.5  # about 0.4 on an idle core of 2022
    assert peak < 256 << 20
    file = read_gguf(path)
    assert file.value("tokenizer.ggml.tokens")[262_143] == "▁tøken262143"
    assert file.value("tokenizer.ggml.scores")[1000] == 1000.0
    assert file.value("tokenizer.ggml.merges")[514_905] == "tok en514905"


VALID = a.gguf(
    [
        a.ARCH,
        a.kv("general.alignment", a.U32, a.u32(32)),
        a.array("tokens", a.STRING, 3, a.string("a") + a.string("bø") + a.string("")),
        a.array("scores", a.F32, 3, struct.pack("<3f", 1, 2, 3)),
        a.kv("flag", a.BOOL, b"\1"),
    ],
    [a.info("x.weight", [32, 2], a.T_Q8_0, 0), a.info("y.weight", [3], a.T_F32, 96), a.info("z", [1], a.T_BF16, 128)],
    bytes(160),
)
INTERESTING = [0, 1, 2, 31, 255, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 62, HUGE := 1 << 63, 2 * HUGE - 1]
edit = st.tuples(
    st.sampled_from(["flip", "word", "drop", "double", "cut"]),
    st.integers(0, len(VALID) - 1),
    st.sampled_from(INTERESTING) | st.integers(0, 255),
)


def mutate(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    result = bytearray(data)
    for kind, at, value in edits:
        if kind == "flip" and at < len(result):
            result[at] ^= value & 255
        elif kind == "word":
            result[at : at + 8] = a.u64(value)
        elif kind == "drop":
            del result[at : at + value % 64]
        elif kind == "double":
            result[at:at] = result[at : at + value % 64]
        else:
            del result[len(result) - value % len(data) :]
    return bytes(result)


class InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@pytest.fixture(scope="module")
def ggml_accepts() -> Callable[[Path], bool]:
    """Whether ggml's own reader opens a file."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    name = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(sys.platform, "libggml-base.so")
    ggml = ctypes.CDLL(str(folder / name))
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_free.argtypes = [ctypes.c_void_p]

    def accepts(path: Path) -> bool:
        context = ggml.gguf_init_from_file(str(path).encode(), InitParams(True, None))
        if context:
            ggml.gguf_free(context)
        return bool(context)

    return accepts


def test_ggml_accepts_the_valid_file(tmp_path: Path, ggml_accepts: Callable[[Path], bool]) -> None:
    assert ggml_accepts(put(tmp_path / "a.gguf", VALID))
    assert not ggml_accepts(put(tmp_path / "b.gguf", VALID[:100]))


@settings(max_examples=500, deadline=2000, suppress_health_check=FIXTURES)
@given(edits=st.lists(edit, min_size=1, max_size=4))
def test_mutations_are_refused_or_accepted_by_ggml_too(
    tmp_path: Path, ggml_accepts: Callable[[Path], bool], edits: list[tuple[str, int, int]]
) -> None:
    path = put(tmp_path / "m.gguf", mutate(VALID, edits))
    try:
        file = read_gguf(path)
    except InvalidInput as error:
        assert "\n" not in str(error)
        return
    assert all(slice.offset + slice.nbytes <= path.stat().st_size for slice in file.tensors.values())
    assert ggml_accepts(path)


TEXTS = (
    st.binary(max_size=12)
    | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from([b"", b"\0", bytes(7), b"\5" + bytes(7) + b"hallo", b"\xc3", b"x" * 255, b"x" * 256])
)


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES)
@given(texts=st.lists(TEXTS, max_size=20), cut=st.integers(0, 60))
def test_any_strings(tmp_path: Path, texts: list[bytes], cut: int) -> None:
    """Any bytes, whole and cut off."""
    data = a.gguf([a.array("k", a.STRING, len(texts), b"".join(map(a.string, texts)))])
    path = put(tmp_path / "strings.gguf", data[: len(data) - cut])
    try:
        found = read_gguf(path).value("k")
    except InvalidInput as error:
        assert cut and "\n" not in str(error)
    else:
        assert [text.encode("utf-8", "surrogateescape") for text in found] == texts


# ---- split files


def shard(no: int, count: int, names: list[str], total: int, /, **keys: bytes) -> bytes:
    split = {
        "no": a.kv("split.no", a.U16, struct.pack("<H", no)),
        "count": a.kv("split.count", a.U16, struct.pack("<H", count)),
        "total": a.kv("split.tensors.count", a.I32, a.u32(total)),
    } | keys
    infos = [a.info(name, [8], a.T_F32, 32 * index) for index, name in enumerate(names)]
    return a.gguf([*([a.ARCH] if no == 0 else []), *split.values()], infos, bytes(32 * len(names)))


def shards(folder: Path, *contents: bytes) -> Path:
    for index, data in enumerate(contents, 1):
        put(folder / f"m-{index:05d}-of-{len(contents):05d}.gguf", data)
    return folder / f"m-00001-of-{len(contents):05d}.gguf"


def test_split_files_are_one(tmp_path: Path) -> None:
    first = shards(tmp_path, shard(0, 3, ["a", "b"], 4), shard(1, 3, ["c"], 4), shard(2, 3, ["d"], 4))
    file = read_gguf(first)
    assert list(file.tensors) == ["a", "b", "c", "d"]
    assert [slice.path.name[:7] for slice in file.tensors.values()] == ["m-00001", "m-00001", "m-00002", "m-00003"]
    assert file.path == first and file.value("general.architecture") == "gemma3"


def test_split_into_one_is_an_ordinary_file(tmp_path: Path) -> None:
    assert list(read_gguf(put(tmp_path / "any name.gguf", shard(0, 1, ["a"], 1))).tensors) == ["a"]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (None, r"m-00002-of-00002.gguf: missing: shard 2 of 2"),
        (shard(0, 2, ["b"], 2), "says it is shard 1 of 2, not 2 of 2"),
        (shard(1, 3, ["b"], 2), "says it is shard 2 of 3, not 2 of 2"),
        (shard(1, 2, ["a"], 2), "'a' also lies in an earlier shard"),
        (shard(1, 2, ["b", "c"], 2), "more tensors than split.tensors.count, 2"),
        (shard(1, 2, [], 2), "split.tensors.count is 2, but the shards hold 1"),
        (a.gguf([a.ARCH]), "split.no is missing"),
        (shard(1, 2, ["b"], 2, no=a.kv("split.no", a.U32, a.u32(1))), "split.no is UINT32, not UINT16"),
        (shard(1, 2, ["b"], 2)[:60], "byte"),
    ],
)
def test_lying_second_shard(tmp_path: Path, second: bytes | None, expected: str) -> None:
    first = shards(tmp_path, shard(0, 2, ["a"], 2), second or b"")
    if second is None:
        (tmp_path / "m-00002-of-00002.gguf").unlink()
    assert re.search(expected, refused(lambda: read_gguf(first)))


def test_lying_first_shard(tmp_path: Path) -> None:
    lone = put(tmp_path / "model.gguf", shard(0, 2, ["a"], 2))
    assert "must be named NAME-00001-of-00002.gguf" in refused(lambda: read_gguf(lone))
    shards(tmp_path, shard(0, 2, ["a"], 2), shard(1, 2, ["b"], 2))
    later = tmp_path / "m-00002-of-00002.gguf"
    assert "give the first one, m-00001-of-00002.gguf" in refused(lambda: read_gguf(later))
    typed = put(tmp_path / "t.gguf", a.gguf([a.kv("split.count", a.STRING, a.string("2"))]))
    assert "split.count is STRING, not UINT16" in refused(lambda: read_gguf(typed))


# ---- metadata against tensors


def model(
    kvs: list[bytes] = [],  # noqa: B006
    *,
    tokens: int = 4,
    blocks: tuple[int, ...] = (0, 1),
    block_count: bytes | None = a.kv("gemma3.block_count", a.U32, a.u32(2)),
) -> bytes:
    pieces = a.array("tokenizer.ggml.tokens", a.STRING, tokens, b"".join(a.string(f"t{i}") for i in range(tokens)))
    infos = [a.info("token_embd.weight", [8, 4], a.T_F32, 0)]
    infos += [a.info(f"blk.{bid}.attn_norm.weight", [8], a.T_F32, 128 + 32 * n) for n, bid in enumerate(blocks)]
    return a.gguf([a.ARCH, *filter(None, [block_count]), pieces, *kvs], infos, bytes(128 + 32 * len(blocks)))


def test_honest_model(tmp_path: Path) -> None:
    scores = a.array("tokenizer.ggml.scores", a.F32, 4, bytes(16))
    types = a.array("tokenizer.ggml.token_type", a.I32, 4, bytes(16))
    eos = a.kv("tokenizer.ggml.eos_token_id", a.U32, a.u32(3))
    check_model(read_gguf(put(tmp_path / "a.gguf", model([scores, types, eos]))))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (model([a.array("tokenizer.ggml.scores", a.F32, 3, bytes(12))]), "scores has 3 items for 4 tokens"),
        (model([a.array("tokenizer.ggml.scores", a.F64, 4, bytes(32))]), "scores is FLOAT64, not an array of FLOAT32"),
        (model([a.array("tokenizer.ggml.token_type", a.I32, 5, bytes(20))]), "token_type has 5 items for 4 tokens"),
        (model([a.array("tokenizer.ggml.token_type", a.U8, 4, bytes(4))]), "token_type is UINT8"),
        (model([a.kv("tokenizer.ggml.scores", a.F32, bytes(4))]), "scores is FLOAT32, not an array"),
        (model([a.array("tokenizer.ggml.merges", a.I32, 4, bytes(16))]), "merges is INT32"),
        (model([a.kv("tokenizer.ggml.eos_token_id", a.U32, a.u32(4))]), "eos_token_id is UINT32 4, not one of 4"),
        (a.gguf([a.ARCH, a.array("tokenizer.ggml.tokens", a.STRING, 3, a.string("a") * 3)]), "tokens has 'a' twice"),
        (model([a.kv("tokenizer.ggml.bos_token_id", a.STRING, a.string("1"))]), "bos_token_id is STRING"),
        (model(tokens=3), r"tokens has 3 items, but token_embd.weight has shape \[4, 8\]"),
        (model(blocks=(0, 1, 2)), "block_count is 2, but the tensors belong to 3 blocks"),
        (model(blocks=(0,)), "block_count is 2, but the tensors belong to 1 blocks"),
        (model(blocks=(1,)), "block_count is 2, but block 0 has no tensors"),
        (model(block_count=a.kv("gemma3.block_count", a.U32, a.u32(10**9))), "is 1000000000, but"),
        (model(block_count=a.kv("gemma3.block_count", a.STRING, a.string("2"))), "is STRING, not UINT32"),
        (model(block_count=None), "gemma3.block_count is missing"),
        (a.gguf([a.kv("general.type", a.STRING, a.string("imatrix"))]), "general.type is 'imatrix'; a model is needed"),
        (a.gguf([]), "general.architecture is missing"),
    ],
)
def test_metadata_that_contradicts_the_tensors(tmp_path: Path, data: bytes, expected: str) -> None:
    file: GGUFFile = read_gguf(put(tmp_path / "a.gguf", data))
    assert re.search(expected, refused(lambda: check_model(file)))
