"""Importance matrices with holes, and --tensor-type patterns that fit nothing: told while planning."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.encoders import ggml
from borealis_gguf.quantize.importance import IGNORE_IMPORTANCE

from ..cli.test_cli import run
from ..helpers.checkpoints import Miniature, config
from ..helpers.tiny import weights
from .test_imatrix import pair, write_gguf

WIDE = config(hidden_size=256, intermediate_size=512, num_hidden_layers=4, head_dim=64, query_pre_attn_scalar=64,
              layer_types=["sliding_attention"] * 4)  # fmt: skip
WIDTHS = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), 256) | {"ffn_down": 512}
HOLE = "blk.3.ffn_down.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Miniature("wide", WIDE).write(tmp_path)


@pytest.fixture
def width_of_output(source: Path, tmp_path: Path) -> int:
    plan = api.plan_convert(source, tmp_path / "x.gguf")
    return next(t.tensor.n_per_row for t in plan.tensors if t.tensor.name == "blk.0.attn_output.weight")


@pytest.fixture
def matrix(tmp_path: Path, width_of_output: int) -> Callable[..., Path]:
    def write(name: str, **changes: float | None) -> Path:
        """A matrix whose sums are multiplied; by None, the tensor has no entry."""
        tensors: dict[str, np.ndarray] = {}
        for bid in range(4):
            for kind, width in (WIDTHS | {"attn_output": width_of_output}).items():
                full = f"blk.{bid}.{kind}.weight"
                factor = changes.get(f"{kind}_{bid}", 1.0)
                if factor is not None:
                    sums = np.random.default_rng(width + bid).random((1, width)) * 5000 * factor
                    tensors |= pair(sums, [[5120]], full)
        return write_gguf(tmp_path / name, tensors)

    return write


def test_a_complete_matrix_gives_no_warning(
    source: Path, tmp_path: Path, matrix: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The embedding and the output layer have no entries in files of llama-imatrix."""
    api.plan_quantize(source, ["Q4_K_M", "IQ2_M"], tmp_path, imatrix=matrix("full.gguf"))
    assert "full.gguf" not in caplog.text


def test_gaps_give_one_warning_for_all_presets(
    source: Path, tmp_path: Path, matrix: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = matrix("hole.gguf", ffn_down_3=None, attn_v_0=None, attn_q_0=None, attn_k_0=None, ffn_up_1=None)
    api.plan_quantize(source, ["Q4_K_M", "Q5_K_M", "Q8_0"], tmp_path, imatrix=path)
    told = [record.getMessage() for record in caplog.records if "hole.gguf" in record.getMessage()]
    assert told == [
        f"{path}: has no entry for blk.0.attn_k.weight, blk.0.attn_q.weight, blk.0.attn_v.weight, blk.1.ffn_up.weight "
        "and 1 more: quantized as without an importance matrix"
    ]
    caplog.clear()
    api.plan_quantize(source, ["Q8_0"], tmp_path, imatrix=path)
    assert "hole.gguf" not in caplog.text


def test_gaps_give_a_warning_in_a_dry_run_too(source: Path, tmp_path: Path, matrix: Callable[..., Path]) -> None:
    path = matrix("hole.gguf", ffn_down_3=None)
    done = run("quantize", "Q4_K_M", "-m", source, "--imatrix", path, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert f"hole.gguf: has no entry for {HOLE}: quantized as without" in done.stderr


@pytest.mark.parametrize(("factor", "what"), [(None, "no entry"), (0.0, "only zeros")])
def test_a_gap_where_values_are_needed_is_refused(
    source: Path, tmp_path: Path, matrix: Callable[..., Path], factor: float | None, what: str
) -> None:
    path = matrix("hole.gguf", ffn_down_3=factor)
    with pytest.raises(InvalidInput) as caught:
        api.plan_quantize(source, ["IQ2_M"], tmp_path, imatrix=path)
    advice = f"collect the matrix again, or use --tensor-type {HOLE}=q4_k"
    assert str(caught.value) == (
        f"IQ2_M: {HOLE} as IQ2_S needs importance values, and {path} has {what} for it; {advice}"
    )
    api.plan_quantize(source, ["IQ2_M"], tmp_path, imatrix=path, tensor_types=[f"{HOLE}=q4_k"])


def test_all_zero_importance_counts_as_none(
    source: Path, tmp_path: Path, matrix: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """By them, every weight would become zero."""
    zeros, none = matrix("zeros.gguf", ffn_down_3=0.0), matrix("none.gguf", ffn_down_3=None)
    plans = [api.plan_quantize(source, ["Q4_K_M"], tmp_path / f"{p.stem}-q.gguf", imatrix=p)[0] for p in (zeros, none)]
    assert f"zeros.gguf: has only zeros for {HOLE}: quantized as without" in caplog.text
    api.execute(plans)
    data = []
    for plan in plans:
        held = next(t for t in plan.tensors if t.tensor.name == HOLE)
        data.append(plan.path.read_bytes()[held.offset :][: held.nbytes])
    assert data[0] == data[1] and any(data[0])
    assert api.check(plans[0].path, source, imatrix=zeros).ok


def test_values_too_large_for_a_lattice_name_their_tensor(tmp_path: Path, matrix: Callable[..., Path]) -> None:
    path, source = matrix("large.gguf", ffn_up_2=9e14), Miniature("loud", WIDE, scale=100).write(tmp_path)
    with pytest.raises(InvalidInput, match=r"blk\.2\.ffn_up\.weight: weights or their importance are .* huge"):
        api.execute(api.plan_quantize(source, ["IQ2_M"], tmp_path / "loud-IQ2_M.gguf", imatrix=path))
    assert not list(tmp_path.glob("loud-IQ2_M.gguf"))


@pytest.mark.parametrize("type", sorted(IGNORE_IMPORTANCE - {T.F32, T.F16, T.BF16}), ids=lambda type: type.name)
def test_types_that_ignore_importance(type: T) -> None:
    rows = weights(5, 4, 256)
    out = np.empty((2, 4, 256 // type.block * type.nbytes), np.uint8)
    for to, values in zip(out, (None, np.arange(256, dtype=np.float32)), strict=True):
        ggml.encode(rows, type, values, to)
    assert np.array_equal(out[0], out[1])


# ---- --tensor-type


@pytest.mark.parametrize("pattern", ["attn_z", r"^blk\.9\.", "model.layers.0", "attn_norm", "ffn_dwon"])
def test_a_pattern_that_fits_no_tensor_is_refused(source: Path, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        api.plan_quantize(source, ["Q4_K_M"], tmp_path, tensor_types=["attn_v=q8_0", f"{pattern}=q8_0"])
    assert str(caught.value).startswith(
        f"--tensor-type {pattern!r}: fits no tensor that is quantized; these are token_embd"
    )
    assert "attn_k.weight, attn_output.weight" in str(caught.value) and HOLE not in str(caught.value)
    assert re.search(r"\(in full blk\.3\.[\w.]+\)$", str(caught.value))


def test_a_pattern_behind_another_is_accepted(source: Path, tmp_path: Path) -> None:
    plan = api.plan_quantize(
        source, ["Q4_K_M"], tmp_path, tensor_types=["attn=q8_0", "attn_v=q6_k", "token_embd=q8_0"]
    )[0]
    assert {t.type for t in plan.tensors if "attn_v" in t.tensor.name} == {T.Q8_0}
