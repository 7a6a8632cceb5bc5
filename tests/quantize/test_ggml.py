"""The binding of ggml's encoders, against the files that llama.cpp's own quantizer writes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf.constants import GGUFValueType as V

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.types import KV, row_nbytes
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.quantize.choose import TypeOptions
from borealis_gguf.quantize.encoders import ggml
from borealis_gguf.quantize.metadata import imatrix_kv, quantized_kv
from borealis_gguf.quantize.presets import find_preset

from ..helpers.llama_quantize import llama_quantize

# Their tables take seconds to build; the code that calls them is the same.
SLOW = {T.IQ1_S, T.IQ1_M, T.IQ2_XS, T.IQ2_S}
TYPES = [type for type in T if type not in ggml.NOT_ENCODED and type not in SLOW]
WIDTH, ROWS = 512, 5


def weights(rows: int = ROWS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def bf16(rows: np.ndarray) -> np.ndarray:
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def importance() -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 4, WIDTH).astype(np.float32)


def encoded(rows: np.ndarray, type: T, imatrix: np.ndarray | None = None) -> np.ndarray:
    out = np.full((len(rows), row_nbytes(type, rows.shape[1])), 0xAA, np.uint8)
    ggml.encode(rows, type, imatrix, out)
    return out


def tensor_name(type: T) -> str:
    return f"blk.0.{type.name.lower()}.weight"


def write_source(path: Path, rows: np.ndarray) -> Path:
    """A model with a tensor for every type, all of the same rows, whose patterns can be told apart by name."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for key in ("context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count"):
        writer.add_uint32(f"gemma3.{key}", 1 if key == "block_count" else 64)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_uint32("general.file_type", 32)
    writer.add_string("general.name", "before")
    for type in TYPES:
        raw = gguf.GGMLQuantizationType.BF16 if rows.dtype == np.uint16 else None
        writer.add_tensor(tensor_name(type), rows.view(np.uint8) if raw else rows, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("source_type", ["float32", "float16", "bf16"])
def test_bytes_and_metadata_are_llama_cpps(source_type: str, tmp_path: Path) -> None:
    rows = {"float32": weights(), "float16": weights().astype(np.float16), "bf16": bf16(weights())}[source_type]
    imatrix = None if source_type == "bf16" else importance()
    types = [type for type in TYPES if imatrix is not None or (type is not T.IQ2_XXS and type is not T.IQ3_XXS)]
    source = write_source(tmp_path / "in.gguf", rows)
    if imatrix is None:  # those two would be refused: give them another type
        data = source.read_bytes()
        for type in (T.IQ2_XXS, T.IQ3_XXS):
            old = tensor_name(type).encode()
            data = data.replace(old, old.replace(b"iq", b"xx"))
        source.write_bytes(data)
    overrides = [KV("general.name", V.STRING, "after"), *imatrix_kv("é" * 80, ["d"], len(TYPES), 3)]
    patterns = tuple((rf"\.{type.name.lower()}\.", type) for type in TYPES)
    entries = {} if imatrix is None else {tensor_name(type): imatrix for type in TYPES}
    options = TypeOptions(tensor_types=patterns)
    ok, log = llama_quantize(source, tmp_path / "out.gguf", find_preset("Q8_0"), options, entries, overrides)
    assert ok, log
    theirs = read_gguf(tmp_path / "out.gguf")
    assert theirs.kv == quantized_kv(read_gguf(source).kv, 7, overrides)
    data = (tmp_path / "out.gguf").read_bytes()
    for type in types:
        slice = theirs.tensors[tensor_name(type)]
        assert slice.type is type
        assert data[slice.offset : slice.offset + slice.nbytes] == encoded(rows, type, imatrix).tobytes(), type.name


def test_the_table_of_types_is_ggmls() -> None:
    """Number, name and block of every type, none missing: a type that ggml has no longer has no size there."""
    theirs = {}
    for number in range(llama_cpp.GGML_TYPE_COUNT):
        traits = ggml.library().ggml_get_type_traits(number).contents
        if traits.type_size:
            theirs[number] = (traits.type_name.decode().upper(), traits.blck_size, traits.type_size)
    assert {type.value: (type.name, type.block, type.nbytes) for type in T} == theirs


def test_the_table_of_types_is_gguf_pys_as_far_as_that_goes() -> None:
    for theirs in gguf.GGMLQuantizationType:
        ours = T(theirs)
        assert (ours.name, ours, hash(ours)) == (theirs.name, theirs, hash(theirs))
        # gguf-py counts Q8_1, a type of intermediate results only, with two floats where ggml has two halves.
        assert (ours.block, ours.nbytes) == ((32, 36) if ours is T.Q8_1 else gguf.GGML_QUANT_SIZES[theirs])


@pytest.mark.parametrize("type", [type for type in T if type not in ggml.NOT_ENCODED], ids=lambda type: type.name)
def test_decode_is_the_reference_of_gguf_py(type: T) -> None:
    if type in SLOW:
        nbytes = row_nbytes(type, WIDTH)
        data = np.random.default_rng(3).integers(0, 64, (4, nbytes), np.uint8)  # small exponents: no NaN, no infinity
    else:
        data = encoded(weights(4), type, importance())
    if type in (T.Q1_0, T.NVFP4):  # gguf-py 0.19 has no decoder for these
        assert np.square(ggml.decode(data, type, WIDTH) - weights(4)).mean() < 0.5
        return
    expected = q2_0_weights(data) if type is T.Q2_0 else gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type))
    assert np.array_equal(ggml.decode(data, type, WIDTH), expected.reshape(4, WIDTH))


def q2_0_weights(data: np.ndarray) -> np.ndarray:
    """Q2_0, which gguf-py 0.19 does not know: a block is a float16 scale, and 64 times 2 bits, -1 to 2 of it."""
    blocks = data.reshape(-1, 18)
    codes = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return blocks[:, :2].copy().view(np.float16).astype(np.float32) * (codes.reshape(-1, 64).astype(np.float32) - 1)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_every_source_type_gives_the_bytes_of_its_float32(type: T) -> None:
    half, brain = weights().astype(np.float16), bf16(weights())
    as_float = (brain.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(encoded(half, type, importance()), encoded(half.astype(np.float32), type, importance()))
    assert np.array_equal(encoded(brain, type, importance()), encoded(as_float, type, importance()))


def test_tiles_strides_and_guard_bytes() -> None:
    rows = weights(3 * ggml.TILE_WEIGHTS // WIDTH + 1)
    nbytes = row_nbytes(T.Q4_K, WIDTH)
    whole = encoded(rows, T.Q4_K)
    each = np.concatenate([encoded(rows[i : i + 1], T.Q4_K) for i in range(len(rows))])
    assert np.array_equal(whole, each)
    assert np.array_equal(encoded(rows[::2], T.Q4_K), whole[::2])
    guarded = np.full((ROWS + 2, nbytes), 0x55, np.uint8)
    ggml.encode(rows[:ROWS], T.Q4_K, None, guarded[1:-1])
    assert np.array_equal(guarded[1:-1], whole[:ROWS])
    assert (guarded[[0, -1]] == 0x55).all()
    assert encoded(rows[:0], T.Q4_K).size == 0


def test_threads_do_not_disturb_each_other() -> None:
    rows, types = weights(64), [T.Q4_K, T.Q6_K, T.IQ4_XS, T.IQ3_XXS, T.BF16] * 4
    alone = {type: encoded(rows, type, importance()).tobytes() for type in types}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda type: encoded(rows, type, importance()).tobytes(), types))
    assert together == [alone[type] for type in types]


def test_rows_of_the_type_already_are_copied_bit_by_bit() -> None:
    bits = np.arange(2 * WIDTH, dtype=np.uint16).reshape(2, WIDTH) + np.uint16(0x7C00)  # NaN payloads too
    assert encoded(bits, T.BF16).tobytes() == bits.tobytes()
    assert encoded(bits.view(np.float16), T.F16).tobytes() == bits.tobytes()


@pytest.mark.parametrize("type", [*ggml.EXPONENTS, *ggml.SCALES, T.MXFP4], ids=lambda type: type.name)
def test_validate_judges_as_ggml_does_and_silently(type: T, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(type)
    data = rng.integers(0, 256, (4000, type.nbytes), np.uint8)
    data[:, :: rng.integers(1, 4)] |= rng.integers(0, 2, (4000, 1), np.uint8) * np.uint8(0x7C)
    found = [ggml.validate(block, type) for block in data]
    assert not capfd.readouterr().err
    library = ggml.library()
    assert found == [library.ggml_validate_row_data(type, block.ctypes.data, block.size) for block in data]
    assert {True, False} == set(found)


def test_validate_finds_nan_and_infinity() -> None:
    good = encoded(weights(), T.Q4_K)
    assert ggml.validate(good, T.Q4_K)
    bad = good.copy()
    bad[0, :2] = (0x00, 0x7C)  # the scale, as float16 infinity
    assert not ggml.validate(bad, T.Q4_K)
    with pytest.raises(ValueError, match="not whole Q4_K blocks"):
        ggml.validate(good.ravel()[:-1], T.Q4_K)


def test_input_that_would_abort_the_process_is_refused() -> None:
    rows, out = weights(), np.zeros((ROWS, row_nbytes(T.IQ2_XXS, WIDTH)), np.uint8)
    assert ggml.requires_importance(T.IQ2_XXS)
    with pytest.raises(InvalidInput, match="IQ2_XXS needs an importance matrix"):
        ggml.encode(rows, T.IQ2_XXS, None, out)
    for broken in (np.nan, np.inf, 1e30):
        bad = rows.copy()
        bad[2, 3] = broken
        with pytest.raises(InvalidInput, match="huge or not finite: IQ3_S cannot be made"):
            encoded(bad, T.IQ3_S)
        assert encoded(bad, T.Q8_0).size
    for factor in (np.nan, -1, 1e30):
        with pytest.raises(InvalidInput, match="IQ2_XXS cannot be made"):
            ggml.encode(rows, T.IQ2_XXS, importance() * np.float32(factor), out)
    for type in (T.Q8_1, T.Q8_K, T.I32, T.F64):
        with pytest.raises(InvalidInput, match="not a type that weights can be quantized to"):
            ggml.encode(rows, type, None, out)
    with pytest.raises(InvalidInput, match="640 columns do not fit Q4_K blocks of 256"):
        ggml.encode(np.zeros((1, 640), np.float32), T.Q4_K, None, out)
    with pytest.raises(InvalidInput, match="cannot be read as weights"):
        ggml.decode(np.zeros((1, 4), np.uint8), T.I32, 1)


def test_arrays_of_a_wrong_shape_or_kind_never_reach_ggml() -> None:
    rows, out = weights(), np.zeros((ROWS, row_nbytes(T.Q4_K, WIDTH)), np.uint8)
    frozen = out.copy()
    frozen.flags.writeable = False
    for bad_out in (out[:-1], out[:, :-1], out.view(np.int8), np.asfortranarray(out), frozen):
        with pytest.raises(ValueError, match="out is"):
            ggml.encode(rows, T.Q4_K, None, bad_out)
    for bad_rows in (rows[0], rows.astype(np.float64), rows.astype(rows.dtype.newbyteorder())):
        with pytest.raises(ValueError, match="rows are"):
            ggml.encode(bad_rows, T.Q4_K, None, out)
    for bad_importance in (importance()[:-1], importance().astype(np.float64), importance()[None]):
        with pytest.raises(ValueError, match="importance is"):
            ggml.encode(rows, T.Q4_K, bad_importance, out)
    with pytest.raises(ValueError, match="rows of 512 are uint8"):
        ggml.decode(out[:, :-1], T.Q4_K, WIDTH)


def test_a_missing_or_broken_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(BorealisError, match=r"^[^\n]*: no ggml-base library; reinstall llama-cpp-python$"):
        ggml.library.__wrapped__()
    (tmp_path / "libggml-base.so").write_bytes(b"not a library")
    with pytest.raises(BorealisError, match=r"^[^\n]*cannot be used[^\n]*$"):
        ggml.library.__wrapped__()
