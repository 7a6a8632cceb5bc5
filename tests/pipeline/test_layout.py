"""The header writer against gguf-py's, byte for byte."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType as V
from hypothesis import given, settings
from hypothesis import strategies as st

from borealis_gguf.checkpoint.types import KV
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import encode_kv, lay_out
from borealis_gguf.pipeline.plan import GGUFModel

from ..helpers.tiny import CODEC, raw_model

KVS = (
    KV("general.architecture", V.STRING, "gemma3"),
    KV("blåbær", V.STRING, "æøå 🫐"),
    KV("u8", V.UINT8, 255),
    KV("i8", V.INT8, -128),
    KV("u16", V.UINT16, 65535),
    KV("i16", V.INT16, -32768),
    KV("u32", V.UINT32, 2**32 - 1),
    KV("i32", V.INT32, -(2**31)),
    KV("u64", V.UINT64, 2**64 - 1),
    KV("i64", V.INT64, -(2**63)),
    KV("f32", V.FLOAT32, 1e-6),
    KV("f64", V.FLOAT64, 1e-6),
    KV("bool", V.BOOL, True),
    KV("strings", V.ARRAY, ["a", "▁og", "på"], V.STRING),
    KV("ints", V.ARRAY, [1, -2, 3], V.INT32),
    KV("floats", V.ARRAY, [0.5, -1000.0], V.FLOAT32),
)
SHAPES = {"token_embd.weight": (7, 64), "a.bias": (5,), "b.weight": (3, 2, 32)}


def test_file_equals_gguf_py(tmp_path: Path) -> None:
    model = GGUFModel(KVS, raw_model(tmp_path / "raw", SHAPES, T.F32).tensors)
    plan = lay_out(tmp_path / "ours.gguf", model, [T.F32] * 3)
    execute([plan], CODEC)

    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "gemma3")
    for kv in KVS[1:]:
        writer.add_key_value(kv.key, kv.value, kv.type, kv.item_type)
    raw = np.fromfile(tmp_path / "raw", np.float32)
    for tensor in model.tensors:
        start = tensor.source.slice.offset // 4
        writer.add_tensor(tensor.name, raw[start : start + tensor.rows * tensor.n_per_row].reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_offsets_follow_the_alignment(tmp_path: Path, alignment: int) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, T.F32)
    model = GGUFModel((*model.kv, KV("general.alignment", V.UINT32, alignment)), model.tensors)
    plan = lay_out(tmp_path / "x.gguf", model, [T.Q8_0, T.F32, T.F16])
    assert [t.nbytes for t in plan.tensors] == [7 * 68, 20, 384]
    assert len(plan.header) % alignment == 0
    assert all(t.offset % alignment == 0 for t in plan.tensors)
    assert plan.size == plan.tensors[-1].offset + 384 + -384 % alignment


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (2, 64)}, T.F32)
    with pytest.raises(ValueError, match="64 columns do not fit Q4_K blocks of 256"):
        lay_out(tmp_path / "x.gguf", model, [T.Q4_K])


def test_bytes_that_are_not_utf8_survive() -> None:
    token = b"\xff\xfe\xc3".decode("utf-8", "surrogateescape")
    assert b"\xff\xfe\xc3" in encode_kv(KV("t", V.ARRAY, [token], V.STRING))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(max_size=6) | st.sampled_from(["", "\0", "a\0b", "x" * 255, "ø" * 200, "y" * 70_000]), max_size=9)
)
def test_strings_joined_at_once_are_those_encoded_one_by_one(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    entry = encode_kv(KV("k", V.ARRAY, texts, V.STRING))
    payloads = [text.encode("utf-8") for text in texts]
    start = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", V.ARRAY, V.STRING, len(texts))
    assert entry == start + b"".join(struct.pack("<Q", len(data)) + data for data in payloads)
