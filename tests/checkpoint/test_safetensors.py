"""The safetensors header reader against the safetensors package on honest files, and against hostile ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from borealis_gguf.checkpoint.safetensors import read_header
from borealis_gguf.checkpoint.types import GGMLQuantizationType
from borealis_gguf.errors import InvalidInput

from ..helpers import attacks as a
from ..helpers.memory_limits import read_apart


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- honest files


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text("abc.0_æ", min_size=1, max_size=12),
        st.tuples(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(["<f2", "<f4"])),
        min_size=1,
        max_size=6,
    ),
    metadata=st.none() | st.just({"format": "pt"}),
)
def test_agrees_with_the_package(
    tmp_path: Path, tensors: dict[str, tuple[list[int], str]], metadata: dict[str, str] | None
) -> None:
    random = np.random.default_rng(1)
    arrays = {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in tensors.items()}
    path = tmp_path / "blå bær.safetensors"
    save_file(arrays, path, metadata)
    slices = read_header(path)
    data = path.read_bytes()
    with safe_open(path, "numpy") as theirs:
        assert set(slices) == set(theirs.keys())
        for name, slice in slices.items():
            array = theirs.get_tensor(name)
            assert slice.path == path and slice.shape == array.shape
            assert slice.type is {2: GGMLQuantizationType.F16, 4: GGMLQuantizationType.F32}[array.itemsize]
            assert data[slice.offset : slice.offset + slice.nbytes] == array.tobytes()


def test_bf16(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", a.one(dtype="BF16"))
    slice = read_header(path)["a"]
    assert slice.type is GGMLQuantizationType.BF16
    assert (slice.shape, slice.nbytes) == ((2, 3), 12)
    assert slice.offset == path.stat().st_size - 12


def test_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = {"b": a.entry(offsets=[12, 24]), "a": a.entry(offsets=[24, 36]), "c": a.entry()}
    assert list(read_header(put(tmp_path / "a.safetensors", a.safetensors(header, bytes(36))))) == ["c", "b", "a"]


def test_empty_tensors_may_share_an_offset(tmp_path: Path) -> None:
    header = {"x": a.entry(), "e": a.entry([0, 3], [12, 12]), "f": a.entry([0], [12, 12]), "g": a.entry([0], [0, 0])}
    slices = read_header(put(tmp_path / "a.safetensors", a.safetensors(header, bytes(12))))
    assert {name: slice.nbytes for name, slice in slices.items()} == {"g": 0, "x": 12, "e": 0, "f": 0}


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    text = json.dumps({"a": a.entry()})
    path = put(tmp_path / "a.safetensors", a.safetensors(text.ljust(length), bytes(12)))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04")
    assert list(read_header(path)) == ["a"]


def test_no_tensors(tmp_path: Path) -> None:
    assert read_header(put(tmp_path / "a.safetensors", a.safetensors("{}"))) == {}


# ---- hostile files


@pytest.mark.parametrize("name", a.SAFETENSORS)
def test_hostile(tmp_path: Path, name: str) -> None:
    data, expected = a.SAFETENSORS[name]
    path = put(tmp_path / "evil.safetensors", data)
    with pytest.raises(InvalidInput) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    assert re.search(expected, message), message


def test_hostile_files_take_little_time_and_memory(tmp_path: Path) -> None:
    tiny = ",".join(f'"t{index}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for index in range(1_000_000))
    big = [
        a.safetensors("{" + tiny + "}"),
        a.safetensors('{"a":[' + "[]," * 2_700_000 + "1]}"),
        a.safetensors('{"a":[' + "0," * 4_000_000 + "1]}"),
        a.safetensors('{"a":"' + "é" * 4_000_000 + '🫐"}'),
        a.safetensors("[" * 8_000_000),
        a.safetensors('{"a":' * 1_600_000),
        a.safetensors("{" + ",".join(f'"{index}":1' for index in range(500_000)) + "}"),
        a.safetensors(" " * 8_300_000),
        a.safetensors('{"a":"' + '\\"' * 4_000_000 + '"}'),
        *(data for data, _ in a.SAFETENSORS.values()),
    ]
    paths = [put(tmp_path / f"{index}.safetensors", data) for index, data in enumerate(big)]
    results, peak = read_apart("safetensors", *paths)
    assert all(result["message"] for result in results)
    assert max(result["seconds"] for result in results) < 2
    assert peak < 256 << 20, f"{peak >> 20} MiB"


def test_a_large_honest_header_is_quick(tmp_path: Path) -> None:
    """10,000 tensors: eight times what the largest of these models has in all its shards."""
    header = {
        f"model.layers.{i}.self_attn.q_proj.weight": a.entry([2, 3], [12 * i, 12 * i + 12]) for i in range(10_000)
    }
    path = put(tmp_path / "a.safetensors", a.safetensors(header, bytes(120_000)))
    (result,), _ = read_apart("safetensors", path)
    assert result["message"] is None and result["seconds"] < 1


VALID = a.safetensors(
    {"__metadata__": {"format": "pt"}, "a": a.entry(), "b": a.entry([3], [12, 24], "F32"), "c": a.entry([0], [24, 24])},
    bytes(24),
)
piece = st.sampled_from([b"-", b"1e9", b"NaN", b"true", b'"', b"[", b"}", b",", b"\xff", b"\0", b"9" * 30, b"a", b" "])
edit = st.tuples(
    st.sampled_from(["flip", "put", "drop", "cut"]), st.integers(0, len(VALID) - 1), piece, st.integers(1, 40)
)


def mutate(data: bytes, edits: list[tuple[str, int, bytes, int]], keep_length_true: bool) -> bytes:
    result = bytearray(data)
    for kind, at, text, n in edits:
        if kind == "flip" and at < len(result):
            result[at] ^= n
        elif kind == "put":
            result[at:at] = text
        elif kind == "drop":
            del result[at : at + n]
        else:
            del result[-n:]
    if keep_length_true and len(result) >= 32:  # so that edits reach the JSON, not only the length
        result[:8] = a.u64(len(result) - 32)
    return bytes(result)


@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(edit, min_size=1, max_size=4), keep_length_true=st.booleans())
def test_mutations_are_refused_or_accepted_by_the_package_too(
    tmp_path: Path, edits: list[tuple[str, int, bytes, int]], keep_length_true: bool
) -> None:
    path = put(tmp_path / "m.safetensors", mutate(VALID, edits, keep_length_true))
    try:
        slices = read_header(path)
    except InvalidInput as error:
        assert "\n" not in str(error)
        return
    try:
        with safe_open(path, "numpy") as theirs:
            assert set(theirs.keys()) == set(slices)
    except SafetensorError as error:
        pytest.fail(f"accepted, but the package says: {error}")
