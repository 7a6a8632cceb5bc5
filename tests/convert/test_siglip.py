"""The vision side: what llama.cpp's converter makes of it, in every layout; and refusals in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.convert import describe, describe_vision, file_type, has_vision
from borealis_gguf.convert.architectures.siglip import plain_name, read_vision
from borealis_gguf.errors import InvalidInput
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out

from ..generate.goldens import OUTTYPES
from ..helpers.checkpoints import LAYOUTS, MINIATURES, PLAIN, Miniature, preparation, wrapped, write_json
from ..helpers.lora_adapters import Lora
from ..helpers.tiny import CODEC
from .test_goldens import PASS, as_golden, differences, digests, golden

SEEING = tuple(m for m in MINIATURES if m.vision)
SMALL = next(m for m in SEEING if m.name == "seeing-f16")
FOUR = next(m for m in SEEING if m.name == "borealis-4b-mini")


@pytest.mark.parametrize("miniature", SEEING, ids=lambda m: m.name)
def test_equals_llama_cpp(miniature: Miniature, tmp_path: Path) -> None:
    """Entries, order, names, types and bytes, in every outtype; goldens are of the plain layout, these are not all."""
    checkpoint = open_checkpoint(miniature.write(tmp_path))
    want = golden(f"mmproj-{miniature.name}")
    described = {outtype: describe_vision(checkpoint, outtype) for outtype in OUTTYPES}
    for outtype, (model, types) in described.items():
        theirs = [[*e, want["file_type"][outtype]] if e[0] == "general.file_type" else e for e in want["kv"]]
        assert differences(as_golden(model.kv), theirs) == []
        assert file_type(model.tensors, outtype) == want["file_type"][outtype]
        assert " ".join(t.name for t in types) == want["types"][outtype]
    plans = [lay_out(tmp_path / f"{o}.gguf", *described[o], label=o) for o in PASS]
    execute(plans, CODEC)
    for plan in plans:
        for ours, (name, shape, by_type), digest in zip(plan.tensors, want["tensors"], digests(plan), strict=True):
            assert (ours.tensor.name, list(ours.tensor.shape)) == (name, shape)
            assert digest == by_type[ours.type.name], (plan.label, name)


@pytest.mark.parametrize("layout", [PLAIN, *LAYOUTS], ids=lambda pair: pair[0])
def test_every_layout_gives_the_same_file(layout: tuple[str, str], tmp_path: Path) -> None:
    """Where llama.cpp's converter writes a file without tensors, or dies, we write what it makes of the plain one."""
    checkpoint = open_checkpoint(replace(FOUR, vision=layout).write(tmp_path))
    assert has_vision(checkpoint)
    model, types = describe_vision(checkpoint, "q8_0")
    want = golden(f"mmproj-{FOUR.name}")
    assert " ".join(t.name for t in types) == want["types"]["q8_0"]
    plan = lay_out(tmp_path / "out.gguf", model, types)
    execute([plan], CODEC)
    assert digests(plan) == [
        by_type[t.type.name] for t, (_, _, by_type) in zip(plan.tensors, want["tensors"], strict=True)
    ]
    text, _ = describe(checkpoint, "bf16")
    assert [t.name for t in text.tensors] == [name for name, *_ in golden(FOUR.name)["tensors"]]


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.up_proj.weight", "my_vision_tower.post_layernorm.weight", "language_model.lm_head.weight"],
)
def test_the_text_side_is_not_mistaken(name: str) -> None:
    assert plain_name(name) is None


def test_text_models_cannot_see(tmp_path: Path, nano: Path) -> None:
    checkpoint = open_checkpoint(nano)
    assert not has_vision(checkpoint)
    with pytest.raises(InvalidInput, match="Gemma3ForCausalLM cannot see, so there is no mmproj"):
        describe_vision(checkpoint, "f16")


def test_a_vision_side_without_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a text-only finetune leaves behind: told once, and an error only where an mmproj is asked for."""
    checkpoint = open_checkpoint(replace(SMALL, vision=None).write(tmp_path))
    assert not has_vision(checkpoint)
    assert "the tensors lack" in caplog.text
    with pytest.raises(InvalidInput, match="no tensor belongs to one; take the mmproj of the model"):
        read_vision(checkpoint)


def write(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """SMALL, with its config.json changed."""
    config = wrapped(SMALL.text, dict(SMALL.config["vision_config"]))
    change(config)
    path = SMALL.write(folder)
    write_json(path / "config.json", config)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("vision_config"), "no vision_config"),
        (lambda c: c["vision_config"].update(image_size=57), "57×57 in patches of 14×14 does not pool"),
        (lambda c: c.update(mm_tokens_per_image=5), "does not pool to mm_tokens_per_image, 5"),
        (lambda c: c.update(mm_tokens_per_image=64), "does not pool to mm_tokens_per_image, 64"),
        (lambda c: c.pop("mm_tokens_per_image"), "does not pool to mm_tokens_per_image, 256"),
        (lambda c: c["vision_config"].update(num_attention_heads=5), "5 attention heads do not divide"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act is 'relu'"),
        (lambda c: c["vision_config"].update(num_channels=1), "num_channels is 1"),
        (lambda c: c["vision_config"].update(model_type="clip_vision_model"), "clip_vision_model"),
        (lambda c: c["vision_config"].update(num_hidden_layers=10**9), "more than there are tensors"),
        (lambda c: c["vision_config"].update(num_hidden_layers=2), "tensors missing: .*layers.1"),
        (lambda c: c["vision_config"].update(intermediate_size=49), "its shape is .* config.json makes it"),
        (lambda c: c["vision_config"].update(layer_norm_eps="x"), "layer_norm_eps"),
        (lambda c: c.update(vision_config=3), "vision_config is 3"),
    ],
)
def test_refused_configurations(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, change))
    with pytest.raises(InvalidInput, match=message) as caught:
        describe_vision(checkpoint, "f16")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": None}, r"image_mean is 'None'; it must be three numbers"),
        ({"image_std": [0.5, 0.5]}, "image_std"),
        ({"image_std": [0.5, 0.5, 0]}, "each must lie within"),
        ({"image_mean": ["a", 0, 0]}, "each must lie within"),
        ({"image_seq_length": 256}, "image_seq_length is 256"),
        ({"size": {"height": 896, "width": 896}}, "size: height is 896"),
        ({"resample": 3}, "resample is 3"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"do_pan_and_scan": True}, "do_pan_and_scan is True"),
    ],
)
def test_refused_preparations(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = SMALL.write(tmp_path)
    write_json(path / "preprocessor_config.json", preparation(56, 4, **changes))
    with pytest.raises(InvalidInput, match=message) as caught:
        describe_vision(open_checkpoint(path), "f16")
    assert "\n" not in str(caught.value)


def test_no_preparation(tmp_path: Path) -> None:
    path = SMALL.write(tmp_path)
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"neither preprocessor_config\.json nor processor_config\.json, which say"):
        describe_vision(open_checkpoint(path), "f16")


@pytest.mark.parametrize(("layout", "trained"), [(LAYOUTS[2], PLAIN), (PLAIN, LAYOUTS[2])], ids=["flat", "plain"])
def test_an_adapter_reaches_both_sides(layout: tuple[str, str], trained: tuple[str, str], tmp_path: Path) -> None:
    """PEFT's `q_proj` means that of the vision tower too; and the two may be of different versions of transformers."""
    miniature = replace(SMALL, vision=layout, dtype="F32")
    name = f"{PLAIN[0]}encoder.layers.0.self_attn.q_proj.weight"
    text = "language_model.layers.0.self_attn.q_proj.weight"
    seen = name.replace(PLAIN[0], trained[0].removeprefix("model."))
    lora = Lora("lora", {}, {"q_proj": 4}, shapes={seen: (32, 32), text: (128, 64)})
    loras = [(lora.write(tmp_path), 0.5)]
    plans = api.plan_quantize(miniature.write(tmp_path), ["F32"], tmp_path, loras=loras, mmproj="f32")
    plain = api.plan_mmproj(tmp_path / miniature.name, tmp_path / "plain.gguf", outtype="f32")
    alone = api.plan_mmproj(tmp_path / miniature.name, tmp_path / "alone.gguf", outtype="f32", loras=loras)
    api.execute([*plans, plain, alone])
    assert digests(alone) == digests(plans[1])
    changed = [t.tensor.name for t, a, b in zip(plain.tensors, digests(plain), digests(alone), strict=True) if a != b]
    assert changed == ["v.blk.0.attn_q.weight"]
    stem = lora.prefix + seen.removesuffix(".weight")
    a, b = (np.frombuffer(lora.tensors()[f"{stem}.lora_{x}.weight"][2], np.float32) for x in "AB")
    want = np.frombuffer(miniature.bytes(name, (32, 32)), np.float32) + (b.reshape(32, 4) @ a.reshape(4, 32)).ravel()
    written = next(t for t in plans[1].tensors if t.tensor.name == changed[0])
    got = np.fromfile(plans[1].path, np.float32, 32 * 32, offset=written.offset)
    assert np.abs(got - want).max() < 1e-5
