"""Every layout of tensor names that versions of transformers have written for Gemma 3 gives the same GGUF files."""

from dataclasses import replace
from pathlib import Path

import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf

from ..helpers.checkpoints import (
    LAYOUTS,
    N_NANO,
    PLAIN,
    Miniature,
    config,
    image_token,
    preparation,
    wrapped,
    write_shards,
)

TIED = Miniature("m", config(num_hidden_layers=2))
UNTIED = replace(TIED, config=config(tie_word_embeddings=False), head="lm_head")
VISION = Miniature(
    "m",
    wrapped(config(vocab_size=N_NANO + 64), bos_token_id=2, eos_token_id=1),
    tokenizer=image_token,
    vision=PLAIN,
    files={"preprocessor_config.json": preparation(56, 4)},
)
WRAPS = (
    ("language_model.model.", "language_model.lm_head."),
    ("language_model.model.", "lm_head."),
    ("model.language_model.", "lm_head."),
    ("model.language_model.model.", "lm_head."),
    ("model.language_model.model.", "model.language_model.lm_head."),
    ("model.language_model.model.", "language_model.lm_head."),
)


def write(model: Miniature, folder: Path, wrap: tuple[str, str], vision: tuple[str, str]) -> Path:
    """`model` with its tensors under other names."""
    pairs = [*zip(PLAIN, vision, strict=True), *zip(("model.", "lm_head."), wrap, strict=True)]
    folder.mkdir()
    path = model.write(folder)
    tensors = {}
    for name, tensor in model.tensors().items():
        old, new = next(pair for pair in pairs if name.startswith(pair[0]))
        tensors[new + name.removeprefix(old)] = tensor
    write_shards(path, tensors, 1)
    return path


def files(source: Path, *, vision: bool) -> list[dict[str, object]]:
    """What the text GGUF holds, and the mmproj of a model with vision."""
    plans = [api.plan_convert(source, source.parent / "m.gguf")]
    plans += [api.plan_mmproj(source, source.parent / "mmproj.gguf")] if vision else []
    api.execute(plans)
    return [content(plan.path) for plan in plans]


def content(path: Path) -> dict[str, object]:
    """Metadata and tensors. Where the head lies depends on how its name sorts, so the order is left out."""
    header, data = read_gguf(path), path.read_bytes()
    tensors = {n: (s.type, s.shape, data[s.offset : s.offset + s.nbytes]) for n, s in header.tensors.items()}
    return {"kv": header.kv, "tensors": tensors}


@pytest.mark.parametrize("model", [TIED, UNTIED, VISION], ids=["tied", "untied", "vision"])
def test_layouts(tmp_path: Path, model: Miniature) -> None:
    """`execute` also runs the quick check, which has a table of names of its own."""
    vision = model.vision is not None
    expected = files(write(model, tmp_path / "usual", ("model.", "lm_head."), PLAIN), vision=vision)
    for n, wrap in enumerate(WRAPS):
        other = write(model, tmp_path / str(n), wrap, LAYOUTS[n])
        assert files(other, vision=vision) == expected, (wrap, LAYOUTS[n])
