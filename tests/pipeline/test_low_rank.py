"""Low-rank updates: the right sum, and the same bytes whatever the workers and chunks."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from borealis_gguf import api
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import Slice
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.pipeline import low_rank
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.memory_estimate import memory_needed
from borealis_gguf.pipeline.plan import GGUFModel, LowRank, Tensor, TensorSource
from borealis_gguf.quantize.encoders import native

from ..helpers.tiny import CODEC, bf16, weights

ROWS, COLUMNS = 150, 96
EPS = float(np.finfo(np.float32).eps)


def stored(path: Path, values: np.ndarray, type: T) -> Slice:
    data = {T.F32: values, T.F16: values.astype(np.float16), T.BF16: bf16(values)}[type]
    path.write_bytes(b"head" + data.tobytes())
    return Slice(path, 4, type, values.shape)


def numbers(slice: Slice) -> np.ndarray:
    """What is stored, as float64."""
    kind = {T.F32: np.float32, T.F16: np.float16, T.BF16: np.uint16}[slice.type]
    data = np.fromfile(slice.path, kind, offset=slice.offset).reshape(slice.shape)
    return ((data.astype(np.uint32) << 16).view(np.float32) if slice.type == T.BF16 else data).astype(np.float64)


def update(folder: Path, seed: int, rank: int, scale: float, type: T = T.F32, transposed: bool = False) -> LowRank:
    up, down = weights(seed, ROWS, rank), weights(seed + 1, rank, COLUMNS)
    up, down = (np.ascontiguousarray(up.T), np.ascontiguousarray(down.T)) if transposed else (up, down)
    return LowRank(
        stored(folder / f"up{seed}", up, type), stored(folder / f"down{seed}", down, type), scale, transposed
    )


def expected(base: Slice, updates: tuple[LowRank, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The sum in float64, and how far float32 may be from it."""
    total = numbers(base)
    bound = np.abs(total) * EPS
    for u in updates:
        up, down = (numbers(u.up).T, numbers(u.down).T) if u.transposed else (numbers(u.up), numbers(u.down))
        total = total + u.scale * up @ down
        bound = bound + (u.rank + 3) * EPS * abs(u.scale) * (np.abs(up) @ np.abs(down)) + np.abs(total) * EPS
    return total, bound


def written(folder: Path, source: TensorSource, type: T, **options: Any) -> np.ndarray:
    tensor = Tensor("blk.0.ffn_up.weight", source, source.slice.shape)
    plan = lay_out(folder / "out.gguf", GGUFModel((), (tensor,)), [type])
    execute([plan], CODEC, **options)
    return np.fromfile(plan.path, np.uint8, plan.tensors[0].nbytes, offset=plan.tensors[0].offset)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("type", [T.F32, T.F16, T.BF16])
def test_the_sum_is_within_float32_rounding(tmp_path: Path, type: T, transposed: bool) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.F32)
    updates = (update(tmp_path, 10, 7, 0.25 * 16 / 7, type, transposed), update(tmp_path, 20, 1, -1.5, type))
    ours = written(tmp_path, TensorSource(base, updates=updates), T.F32).view(np.float32).reshape(ROWS, COLUMNS)
    total, bound = expected(base, updates)
    assert (np.abs(ours - total) <= bound).all()
    assert np.abs(ours - numbers(base)).max() > 0.1


@pytest.mark.parametrize("type", [T.BF16, T.F16])
def test_the_sum_is_rounded_once_to_the_type_of_the_checkpoint(tmp_path: Path, type: T) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), type)
    updates = (update(tmp_path, 10, 8, 0.5), update(tmp_path, 20, 4, 0.25))
    source = TensorSource(base, updates=updates)
    same_type, wide = written(tmp_path, source, type), written(tmp_path, source, T.F32).view(np.float32)
    sums = np.ascontiguousarray(numbers(base).astype(np.float32))
    for u in updates:
        low_rank.add_product(sums, numbers(u.up).astype(np.float32), numbers(u.down).astype(np.float32), u.scale)
    rounded = np.empty((ROWS, 2 * COLUMNS), np.uint8)
    CODEC.encode(sums, type, None, rounded)
    assert np.array_equal(same_type, rounded.reshape(-1))
    # then everything else is made of the rounded numbers
    assert np.array_equal(wide, numbers(replace(base, path=spill(tmp_path, rounded))).astype(np.float32).reshape(-1))
    q8 = np.empty((ROWS, COLUMNS // 32 * 34), np.uint8)
    CODEC.encode(wide.reshape(ROWS, COLUMNS), T.Q8_0, None, q8)
    assert np.array_equal(written(tmp_path, source, T.Q8_0), q8.reshape(-1))


def spill(folder: Path, data: np.ndarray) -> Path:
    (folder / "rounded").write_bytes(b"head" + data.tobytes())
    return folder / "rounded"


@pytest.mark.parametrize("target", [T.BF16, T.Q8_0])
def test_workers_and_chunks_do_not_change_bytes(tmp_path: Path, target: T) -> None:
    """Ranks and widths at which a library's matrix product takes other paths for other heights."""
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.BF16)
    updates = (update(tmp_path, 10, 65, 0.3), update(tmp_path, 20, 16, 0.7, T.BF16, transposed=True))
    source = TensorSource(base, shift=1.0, updates=updates)
    runs = [(1, 1), (1, 1 << 18), (2, 700), (3, 97 * 13), (16, 256)]
    sums = {
        hashlib.sha256(written(tmp_path, source, target, jobs=jobs, chunk_weights=chunk).tobytes()).hexdigest()
        for jobs, chunk in runs
    }
    assert len(sums) == 1


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 31, 7), (9, 33, 16), (8, 96, 65), (5, 130, 1), (4, 64, 0), (13, 640, 4)]
)
def test_kernels_give_the_same_bits(isa: str, shape: tuple[int, int, int]) -> None:
    """Also where rows and columns do not fill the kernels' tiles, with nothing written around them."""
    rows, columns, rank = shape
    up, down = weights(3, rows * 4, rank)[:rows] * 100, np.ascontiguousarray(weights(4, rank * 4, columns)[:rank])
    guarded = np.concatenate([weights(n, 4, columns) for n in range(5, 12)])[: rows + 2]
    before, want = guarded.copy(), guarded[1:-1].copy()
    low_rank.add_product(want, up, down, 0.3)
    assert native.add_product_with(isa, guarded[1:-1], up, down, 0.3)
    assert np.array_equal(guarded[1:-1].view(np.uint32), want.view(np.uint32))
    assert np.array_equal(guarded[[0, -1]], before[[0, -1]])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 70), st.integers(0, 9), st.integers(0, 1 << 30), st.sampled_from([0.25, -3e30])
)
def test_kernels_give_the_same_bits_of_any_numbers(rows: int, columns: int, rank: int, seed: int, scale: float) -> None:
    """Any bits that are no NaN: of NaN, which is refused, only that it is one is kept."""
    random = np.random.default_rng(seed)
    base, up, down = (any_floats(random, shape) for shape in ((rows, columns), (rows, rank), (rank, columns)))
    want = base.copy()
    with np.errstate(all="ignore"):
        low_rank.add_product(want, up, down, scale)
    for isa in native.available_isas():
        got = base.copy()
        assert native.add_product_with(isa, got, up, down, scale)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(got[~np.isnan(got)].view(np.uint32), want[~np.isnan(want)].view(np.uint32))


def any_floats(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    bits = random.integers(0, 1 << 32, shape, np.uint64).astype(np.uint32)
    ordinary = random.standard_normal(shape).astype(np.float32)
    values = np.where(random.random(shape) < 0.1, bits.view(np.float32), ordinary)
    return np.where(np.isnan(values), np.float32(1), values)


def test_matrices_that_do_not_fit_together_never_reach_the_kernels() -> None:
    rows, up, down = weights(1, 8, 32), weights(2, 8, 4), weights(3, 4, 32)
    frozen = rows.copy()
    frozen.flags.writeable = False
    for bad in ((rows[:, :-1], up, down), (rows, up[:-1], down), (rows, up, down[:-1])):
        with pytest.raises(ValueError, match="do not fit together"):
            native.add_product(*bad, 1.0)
    for bad in (
        (rows.astype(np.float64), up, down),
        (rows, np.asfortranarray(up), down),
        (rows[:, ::2], up, down[:, ::2]),
        (frozen, up, down),
    ):
        with pytest.raises(ValueError, match="contiguous float32"):
            native.add_product(*bad, 1.0)
    assert not native.add_product(rows[:0], up[:0], down, 1.0)


def test_without_kernels_numpy_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.BF16)
    source = TensorSource(base, updates=(update(tmp_path, 10, 16, 0.3), update(tmp_path, 20, 5, 0.7, T.BF16, True)))
    sums = set()
    for codec, encoders in ((CODEC, ""), (api.CODEC, ""), (api.CODEC, "ggml"), (api.CODEC, "baseline")):
        monkeypatch.setenv(native.SWITCH, encoders)
        tensor = Tensor("blk.0.ffn_up.weight", source, source.slice.shape)
        plan = lay_out(tmp_path / "out.gguf", GGUFModel((), (tensor,)), [T.F32])
        execute([plan], codec)
        sums.add(hashlib.sha256(plan.path.read_bytes()).hexdigest())
    assert len(sums) == 1


@pytest.mark.parametrize("tile", [1, COLUMNS * 3, 1 << 20])
def test_tiles_do_not_change_bytes(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    up, down = weights(3, ROWS, 33), weights(4, 33, COLUMNS)
    want, got = weights(5, ROWS, COLUMNS), weights(5, ROWS, COLUMNS)
    low_rank.add_product(want, up, down, 0.3)
    monkeypatch.setattr(low_rank, "TILE", tile)
    low_rank.add_product(got, up, down, 0.3)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_another_precision_rounds_a_replaced_tensor(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.F32)
    rounded = np.empty((ROWS, 2 * COLUMNS), np.uint8)
    CODEC.encode(weights(1, ROWS, COLUMNS), T.BF16, None, rounded)
    source = TensorSource(base, precision=T.BF16)
    assert np.array_equal(written(tmp_path, source, T.BF16), rounded.reshape(-1))
    wide = (rounded.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(written(tmp_path, source, T.F32).view(np.float32), wide.reshape(-1))


def test_scale_multiplies_in_float32(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.F32)
    ours = written(tmp_path, TensorSource(base, scale=0.3), T.F32).view(np.float32)
    assert np.array_equal(ours, (weights(1, ROWS, COLUMNS) * np.float32(0.3)).reshape(-1))


def test_one_tensor_in_several_files_is_merged_alike(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.BF16)
    source = TensorSource(base, updates=(update(tmp_path, 10, 8, 0.5),))
    alone = {type: written(tmp_path, source, type) for type in (T.F32, T.BF16, T.Q8_0)}
    tensor = Tensor("w.weight", source, base.shape)
    plans = [lay_out(tmp_path / f"{type.name}.gguf", GGUFModel((), (tensor,)), [type]) for type in alone]
    execute(plans, CODEC)
    for plan, data in zip(plans, alone.values(), strict=True):
        t = plan.tensors[0]
        assert np.array_equal(np.fromfile(plan.path, np.uint8, t.nbytes, offset=t.offset), data)


def test_an_adapter_that_is_cut_off_or_overwritten_is_one_clear_error(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.F32)
    change = update(tmp_path, 10, 8, 0.5)
    source = TensorSource(base, updates=(change,))
    plan = lay_out(change.up.path, GGUFModel((), (Tensor("w.weight", source, base.shape),)), [T.F32])
    with pytest.raises(InvalidInput, match="overwrite its own input"):
        execute([plan], CODEC)
    change.up.path.write_bytes(change.up.path.read_bytes()[:-4])
    with pytest.raises(BorealisError, match="up10: ends inside"):
        written(tmp_path, source, T.F32)
    assert not (tmp_path / "out.gguf").exists()


def test_a_nonfinite_update_is_refused(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(1, ROWS, COLUMNS), T.F16)
    for scale in (np.nan, np.inf, 1e30, 1e6):  # the last one overflows F16 alone
        with pytest.raises(
            BorealisError, match=rf"^{re.escape(f'{base.path} with {tmp_path}')}.*: a weight in .* is NaN or Inf"
        ):
            written(tmp_path, TensorSource(base, updates=(update(tmp_path, 10, 8, float(scale)),)), T.Q8_0)


def test_memory_grows_with_the_rank_and_not_with_the_matrix(tmp_path: Path) -> None:
    def needed(rows: int, rank: int) -> int:
        change = LowRank(Slice(tmp_path, 0, T.F32, (rows, rank)), Slice(tmp_path, 0, T.F32, (rank, 4096)), 1.0)
        source = TensorSource(Slice(tmp_path, 0, T.BF16, (rows, 4096)), updates=(change,))
        model = GGUFModel((), (Tensor("w.weight", source, (rows, 4096)),))
        return memory_needed([lay_out(tmp_path / "x", model, [T.Q8_0])], 1)

    assert needed(1 << 20, 16) == needed(1 << 12, 16)
    assert needed(1 << 12, 32) - needed(1 << 12, 16) < 4 * 16 * 4096 + 4 * 16 * 1000
