"""Gemma 3, text: llama.cpp with our file computes what transformers computes with the checkpoint, for every size."""

from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.runtime.model import load

from ..generate.family_goldens import LOGITS
from ..generate.gemma_logits import BACK, BOS, LENGTHS, positions, prompts
from ..helpers.asking import encode, generate
from ..helpers.gemma_text_models import SIZES, V4, V5, WINDOW, Size, miniature
from ..helpers.gguf_faults import Edit, Weights, drop, set_value, with_metadata
from ..helpers.llama_logits import llama_logits

TOLERANCE = 4e-4
"""Of the largest logit; seen: 1.4e-5 (4b) to 2.6e-4 (27b, 62 layers). Most of it is ggml's GELU, a table in half
precision."""

AT = np.array([*LENGTHS, *(LENGTHS[-1] - back for back in BACK)]) - 1
"""The positions recorded, each in its prompt."""


def converted(size: Size, dialect: str, folder: Path) -> Path:
    plan = api.plan_convert(miniature(size, dialect).write(folder), folder / "f32.gguf", outtype="f32")
    api.execute([plan])
    return plan.path


def compared(size: Size, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """llama.cpp's logits and transformers', at the positions recorded."""
    ours = llama_logits(path, prompts(miniature(size, V4).text["vocab_size"]))
    return positions(ours), np.load(LOGITS / f"gemma-{size.name}.npy")


def apart(size: Size, path: Path) -> np.ndarray:
    """How far they are from each other at each position, as a part of the largest."""
    ours, theirs = compared(size, path)
    return np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max()


@pytest.mark.parametrize("dialect", [V4, V5])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: s.name)
def test_logits_are_transformers(size: Size, dialect: str, tmp_path: Path) -> None:
    ours, theirs = compared(size, converted(size, dialect, tmp_path))
    assert np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()
    assert np.array_equal(ours.argmax(1), theirs.argmax(1))


WRONG: dict[str, tuple[Edit, bool]] = {
    "global base": (set_value("gemma3.rope.freq_base", 10000.0), False),
    "local base": (set_value("gemma3.rope.freq_base_swa", 1000000.0), False),
    "window": (set_value("gemma3.attention.sliding_window", WINDOW + 1), False),
    "factor": (set_value("gemma3.rope.scaling.factor", 4.0), True),
    "no factor": (drop("gemma3.rope.scaling.factor"), True),
}
"""Faults, and whether they are of the stretched sizes alone."""


@pytest.mark.parametrize("size", SIZES, ids=lambda s: s.name)
def test_one_wrong_key_would_show(size: Size, tmp_path: Path) -> None:
    good = converted(size, V5, tmp_path)
    for name, (edit, stretched) in WRONG.items():
        if size.stretched or not stretched:
            wrong = apart(size, with_metadata(good, tmp_path / f"{name}.gguf", edit))
            assert wrong.max() > 10 * TOLERANCE, name
            assert (wrong[AT < WINDOW].max() > TOLERANCE) == (name != "window"), name


@pytest.mark.parametrize("size", [s for s in SIZES if s.layers == 62], ids=lambda s: s.name)
def test_the_other_scale_of_attention_would_show(size: Size, tmp_path: Path) -> None:
    """27b's is hidden/heads, not head_dim, since it has 62 layers."""
    file = Weights(converted(size, V4, tmp_path), tmp_path / "wrong.gguf")
    for bid in range(size.layers):
        name = f"blk.{bid}.attn_q_norm.weight"
        file.encode(name, file.decoded(name) * np.float32((size.scalar / size.head_dim) ** 0.5))
    assert apart(size, file.path).min() > 10 * TOLERANCE


FITS = {"F32", "Q4_K", "Q6_K"}
TYPES = {
    "270m": FITS | {"Q5_0", "Q8_0"},
    "1b": FITS | {"Q5_0", "Q8_0"},
    "4b": FITS,
    "12b": FITS,
    "27b": FITS | {"Q5_0"},
    "27b-heads": {"F32", "F16", "Q4_K", "Q5_0", "Q8_0"},
}
"""What Q4_K_M becomes where rows fit no blocks of 256: those of hidden in 270m, 1b and the last 27b (336 fits
no block at all), of all heads in the first 27b."""


@pytest.mark.parametrize("size", SIZES, ids=lambda s: s.name)
def test_what_was_quantized_runs(size: Size, tmp_path: Path) -> None:
    (plan,) = api.plan_quantize(miniature(size, V4).write(tmp_path), ["Q4_K_M"], tmp_path, mmproj="none")
    api.execute([plan])
    assert {t.type.name for t in plan.tensors} == TYPES[size.name]
    assert TOLERANCE < apart(size, plan.path).max() < 0.3  # seen: 0.014 (4b) to 0.21 (27b: noise, 62 layers deep)
    with load(plan.path, context=128) as model:
        assert encode(model, "Hovedstaden i Norge heter", raw=True)[0] == BOS
        assert generate(model, "Hovedstaden i Norge heter", raw=True, max_tokens=8, seed=1) != ""
