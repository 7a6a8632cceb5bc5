"""Importance matrices of both formats: llama.cpp's arithmetic, and hostile files."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType as V

from borealis_gguf.checkpoint.imatrix import Imatrix, read_imatrix
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.importance import importance_of
from borealis_gguf.quantize.metadata import file_type_of, imatrix_kv, parse_override, quantized_kv

Q = "blk.0.attn_q.weight"


def write_gguf(
    path: Path, tensors: dict[str, np.ndarray], change: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["nob.txt", "nno.txt"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 512)
    if change:
        change(writer)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(sums: object, counts: object, name: str = Q) -> dict[str, np.ndarray]:
    return {f"{name}.in_sum2": np.array(sums, np.float32), f"{name}.counts": np.array(counts, np.float32)}


def text(value: str) -> bytes:
    return struct.pack("<i", len(value.encode())) + value.encode()


def binary(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    body = b"".join(
        text(name) + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
        for name, (calls, values) in entries.items()
    )
    return struct.pack("<i", len(entries)) + body + tail


def test_gguf_divides_sums_by_counts(tmp_path: Path) -> None:
    tensors = pair([[1, 2, 3, 7]], [[3]]) | pair([[4, 8], [5, 5]], [[2], [0]], "blk.1.ffn_down_exps.weight")
    imatrix = read_imatrix(write_gguf(tmp_path / "i.gguf", tensors))
    third = np.float32(3)
    assert imatrix.datasets == ("nob.txt", "nno.txt")
    assert imatrix.chunk_count == 5
    assert list(imatrix.entries) == [Q, "blk.1.ffn_down_exps.weight"]
    assert imatrix.entries[Q].dtype == np.float32
    assert imatrix.entries[Q].tolist() == [float(np.float32(v) / third) for v in (1, 2, 3, 7)]
    assert imatrix.entries["blk.1.ffn_down_exps.weight"].tolist() == [2, 4, 1, 1]


def test_gguf_rounds_counts_half_away_from_zero(tmp_path: Path) -> None:
    for count, expected in ((2.5, 1.0), (2.4, 1.5), (0.4, 1.0), (0.5, 3.0), (-7, 1.0)):
        imatrix = read_imatrix(write_gguf(tmp_path / "i.gguf", pair([[3.0]], [[count]])))
        assert imatrix.entries[Q].tolist() == [expected], count


def test_binary_divides_by_calls(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(binary({Q: (3, [1.0, 6.0]), "output.weight": (0, [4.0])}, struct.pack("<i", 9) + text("wiki.txt")))
    imatrix = read_imatrix(path)
    assert (imatrix.datasets, imatrix.chunk_count) == (("wiki.txt",), 9)
    assert imatrix.entries[Q].tolist() == [float(np.float32(1) / np.float32(3)), 2.0]
    assert imatrix.entries["output.weight"].tolist() == [4.0]
    for tail in (b"", struct.pack("<i", 0)):
        path.write_bytes(binary({Q: (1, [1.0])}, tail))
        assert (read_imatrix(path).datasets, read_imatrix(path).chunk_count) == ((), 0)


ONE = binary({Q: (1, [1.0, 2.0])})
BAD_BINARY = {
    "empty": b"",
    "three bytes": b"\1\0\0",
    "no entries": struct.pack("<i", 0),
    "negative entries": struct.pack("<i", -1),
    "a lie of 2^31 entries": struct.pack("<i", 2**31 - 1) + ONE[4:],
    "one entry too many": struct.pack("<i", 2) + ONE[4:],
    "a name of 2 GB": struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
    "a name of -1 bytes": struct.pack("<ii", 1, -1) + bytes(64),
    "values: 8 GB": struct.pack("<i", 1) + text(Q) + struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
    "values: 0": struct.pack("<i", 1) + text(Q) + struct.pack("<ii", 1, 0) + bytes(64),
    "NaN": binary({Q: (1, [1.0, float("nan")])}),
    "infinity": binary({Q: (1, [float("inf")])}),
    "negative": binary({Q: (1, [-1.0])}),
    "twice": struct.pack("<i", 2) + ONE[4:] * 2,
    "trailing bytes": ONE + struct.pack("<i", 1) + text("x") + b"more",
    "a dataset of 2 GB": ONE + struct.pack("<ii", 1, 2**31 - 1) + b"x",
    "half a chunk count": ONE + b"\1\0",
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    "a pickle": b"\x80\x04" + bytes(64),
}


@pytest.mark.parametrize("kind", BAD_BINARY)
def test_bad_binary_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(BAD_BINARY[kind])
    with pytest.raises(InvalidInput, match=r"^[^\n]*i\.dat: [^\n]+$"):
        read_imatrix(path)


def test_every_truncation_of_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    whole = binary({Q: (2, [1.0, 2.0]), "x": (1, [3.0])}, struct.pack("<i", 4) + text("wiki"))
    optional = {len(whole) - 12, len(whole) - 8}  # before the chunk count, and before the dataset
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length not in optional:
            with pytest.raises(InvalidInput):
                read_imatrix(path)
    path.write_bytes(whole)
    assert len(read_imatrix(path).entries) == 2


BAD_TENSORS = {
    "no tensors of importance": {"x": np.ones(4, np.float32)},
    "no counts": {f"{Q}.in_sum2": np.ones(4, np.float32)},
    "no sums": {f"{Q}.counts": np.ones(1, np.float32)},
    "F16": {f"{Q}.in_sum2": np.ones(4, np.float16), f"{Q}.counts": np.ones(1, np.float32)},
    "3 counts for 4 values": pair([[1, 2, 3, 4]], [[1], [1], [1]]),
    "NaN": pair([[1, float("nan")]], [[1]]),
    "infinite": pair([[1, float("inf")]], [[1]]),
    "negative": pair([[1, -1]], [[1]]),
    "count NaN": pair([[1, 1]], [[float("nan")]]),
    "count infinite": pair([[1, 1]], [[float("inf")]]),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_gguf_tensors_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^[^\n]*i\.gguf: [^\n]+$"):
        read_imatrix(write_gguf(tmp_path / "i.gguf", BAD_TENSORS[kind]))


def test_gguf_metadata_must_be_there_and_of_its_type(tmp_path: Path) -> None:
    def wrong(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["imatrix.chunk_count"] = gguf.GGUFValue("5", V.STRING)

    for key in ("datasets", "chunk_count", "chunk_size"):
        change = lambda writer, key=key: writer.kv_data[0].pop(f"imatrix.{key}")  # noqa: E731
        with pytest.raises(InvalidInput, match=rf"imatrix\.{key} is missing"):
            read_imatrix(write_gguf(tmp_path / "i.gguf", pair([[1]], [[1]]), change))
    with pytest.raises(InvalidInput, match=r"imatrix\.chunk_count is STRING, not UINT32"):
        read_imatrix(write_gguf(tmp_path / "i.gguf", pair([[1]], [[1]]), wrong))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidInput, match="more than any importance matrix"):
        read_imatrix(path)


IMATRIX = Imatrix((), {Q: np.ones(4, np.float32), "token_embd.weight": np.ones(3, np.float32)}, 1)


def test_values_beyond_any_activations_are_refused(tmp_path: Path) -> None:
    huge = write_gguf(tmp_path / "huge", pair([[1, 1e23]], [[10]]))
    with pytest.raises(InvalidInput, match=r"'blk\.0\.attn_q\.weight' has a value of 1e\+22, and weights times that"):
        read_imatrix(huge)
    assert read_imatrix(write_gguf(tmp_path / "large", pair([[1, 1e15]], [[10]]))).entries[Q][1] == np.float32(1e14)


def test_importance_that_is_zero_everywhere_is_none() -> None:
    zeros = np.zeros(4, np.float32)
    matrix = Imatrix((), {"a": zeros, "b": np.array([0, 0, 0, 1], np.float32)}, 1)
    assert importance_of(matrix, "a", (2, 4)) is None
    assert importance_of(matrix, "b", (2, 4)) is matrix.entries["b"]


def test_importance_belongs_to_a_tensor_of_its_width() -> None:
    assert importance_of(IMATRIX, Q, (8, 4)) is IMATRIX.entries[Q]
    assert importance_of(IMATRIX, "blk.0.attn_k.weight", (8, 4)) is None
    assert importance_of(IMATRIX, "token_embd.weight", (8, 4)) is None
    with pytest.raises(InvalidInput, match="has 8 columns, the importance matrix 4"):
        importance_of(IMATRIX, Q, (8, 8))


SOURCE = (
    KV("general.architecture", V.STRING, "gemma3"),
    KV("general.file_type", V.UINT32, 32),
    KV("split.no", V.UINT16, 0),
    KV("general.name", V.STRING, "Borealis"),
    KV("split.count", V.UINT16, 2),
    KV("general.quantization_version", V.UINT32, 1),
    KV("split.tensors.count", V.INT32, 9),
    KV("tokenizer.ggml.model", V.STRING, "llama"),
)


def test_quantized_kv_appends_what_it_sets() -> None:
    overrides = (KV("general.name", V.STRING, "New"), KV("a.b", V.UINT32, 1), KV("a.b", V.UINT32, 2))
    assert [(entry.key, entry.value) for entry in quantized_kv(SOURCE, 15, overrides)] == [
        ("general.architecture", "gemma3"),
        ("tokenizer.ggml.model", "llama"),
        ("general.quantization_version", 2),
        ("general.file_type", 15),
        ("general.name", "New"),
        ("a.b", 2),
    ]


def test_imatrix_kv_cuts_at_127_bytes() -> None:
    name, dataset = "é" * 70 + ".gguf", "a\0b"
    kv = imatrix_kv(name, [dataset, "second"], 182, 40)
    assert [(e.key.removeprefix("quantize.imatrix."), e.type) for e in kv] == [
        ("file", V.STRING),
        ("dataset", V.STRING),
        ("entries_count", V.UINT32),
        ("chunks_count", V.UINT32),
    ]
    assert kv[0].value.encode("utf-8", "surrogateescape") == name.encode()[:127]
    assert [e.value for e in kv[1:]] == ["a", 182, 40]
    assert [e.key[17:] for e in imatrix_kv("x", [], 1, 0)] == ["file", "entries_count"]
    assert imatrix_kv("x", ["y"], 0, 3) == ()


@pytest.mark.parametrize(
    ("dataset", "written"),
    [
        ("/home/kari/data/nob.txt", "nob.txt"),
        ("C:\\Users\\kari\\nob.txt", "nob.txt"),
        ("~/nob.txt", "nob.txt"),
        ("runs/7/nob.txt", "nob.txt"),
        ("../data/", "data"),
        ("nob.txt", "nob.txt"),
        ("NbAiLab/ncc", "NbAiLab/ncc"),
        ("https://example.org/a/b.txt", "https://example.org/a/b.txt"),
    ],
)
def test_imatrix_kv_tells_no_folder_of_the_dataset(dataset: str, written: str) -> None:
    """Purposeful difference: llama.cpp writes the path that its imatrix tool was given."""
    assert [kv.value for kv in imatrix_kv("m", [dataset], 1, 0)] == ["m", written, 1]


def test_parse_override() -> None:
    assert parse_override("a.b=int:7") == KV("a.b", V.UINT32, 7)
    assert parse_override("a.b=float:0.5") == KV("a.b", V.FLOAT32, 0.5)
    assert parse_override("a.b=bool:true") == KV("a.b", V.BOOL, True)
    assert parse_override("a.b=str:x=y:z") == KV("a.b", V.STRING, "x=y:z")
    bad_values = ("int", "int:-1", "int:4294967296", "int:1.5", "bool:yes", "float:x", "float:1e39", "str:" + "x" * 128)
    bad_keys = ("general.alignment=int:64", "split.no=int:0", "k" * 128 + "=int:1", "\udce6" * 128 + "=int:1")
    for bad in ("a.b", "=int:1", "a=x:1", *bad_keys, *(f"a={value}" for value in bad_values)):
        with pytest.raises(InvalidInput, match=r"^--override-kv"):
            parse_override(bad)


def test_file_type_of_a_copy() -> None:
    assert file_type_of(SOURCE, []) == 32
    assert file_type_of([], [T.F32, T.Q4_K, T.Q4_K, T.F32, T.Q6_K]) == 1024 + 15
    assert file_type_of([], []) == 1024
