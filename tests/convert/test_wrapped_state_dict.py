"""State dicts saved from a wrapper around the model, or without its output layer: named, with what to type."""

from collections.abc import Callable
from pathlib import Path

import pytest

from borealis_gguf import api
from borealis_gguf.convert.wrapped_state_dict import BARE
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import MINIATURES, write_json, write_shards
from ..helpers.families import FAMILIES
from ..helpers.lora_adapters import PLAIN, base

MODEL = base("BF16")


def renamed(folder: Path, rename: Callable[[str], str], architecture: str | None = None) -> Path:
    path = MODEL.write(folder)
    write_shards(path, {rename(name): held for name, held in MODEL.tensors().items()}, 1)
    if architecture:
        write_json(path / "config.json", MODEL.config | {"architectures": [architecture]})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


NAMES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "base_layer": (
        lambda n: n.replace("q_proj.weight", "q_proj.base_layer.weight"),
        "a PEFT model whose adapter was not merged (model.layers.0.self_attn.q_proj.base_layer.weight)",
        "model.merge_and_unload().save_pretrained(FOLDER)",
    ),
    "base_model": (lambda n: f"base_model.model.{n}", "a PEFT model", "model.merge_and_unload()"),
    "modules_to_save": (lambda n: n.replace("model.norm.", "model.norm.modules_to_save.default."), "a PEFT model", ""),
    "compile": (lambda n: f"_orig_mod.{n}", "torch.compile", "model._orig_mod.save_pretrained(FOLDER)"),
    "compiled layers": (lambda n: n.replace("layers.0.", "layers.0._orig_mod."), "torch.compile", ""),
    "DDP": (
        lambda n: f"module.{n}",
        "DDP, DataParallel or DeepSpeed",
        "accelerator.unwrap_model(model).save_pretrained",
    ),
    "DDP of a compiled model": (lambda n: f"module._orig_mod.{n}", "torch.compile", "model._orig_mod"),
    "FSDP": (
        lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        "FSDP",
        "state_dict=accelerator.get_state_dict(model)",
    ),
    "checkpointing": (
        lambda n: n.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        "activation checkpointing",
        "repl",
    ),
    "TRL": (
        lambda n: f"pretrained_model.{n}",
        "TRL's model with a value head",
        "model.pretrained_model.save_pretrained",
    ),
    "Lightning": (
        lambda n: f"model.{n}",
        "a wrapper that holds the model as model (model.model.embed_tokens.weight)",
        "",
    ),
    "own": (
        lambda n: f"policy.actor.{n}",
        "holds the model as policy.actor",
        "model.policy.actor.save_pretrained(FOLDER)",
    ),
    "own, around a wrapper": (
        lambda n: f"policy.model.{n}",
        "holds the model as policy.model",
        "model.policy.model.save_pretrained(FOLDER)",
    ),
    "own, around a vision side": (
        lambda n: f"policy.{n.replace('model.', 'model.language_model.')}",
        "holds the model as policy (",
        "model.policy.save_pretrained(FOLDER)",
    ),
    "bare": (
        lambda n: n.removeprefix("model."),
        "a bare model, saved without its output layer, which is the embedding",
        "AutoModelForCausalLM.from_pretrained('",
    ),
    "bare, beside a vision side": (lambda n: n.replace("model.", "language_model."), "a bare model", ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_wrapper_is_named(tmp_path: Path, name: str) -> None:
    rename, what, advice = NAMES[name]
    message = refusal(renamed(tmp_path, rename))
    assert what in message and advice in message


def test_before_adapters_are_looked_at(tmp_path: Path) -> None:
    path, lora = renamed(tmp_path, lambda n: f"module.{n}"), PLAIN.write(tmp_path)
    with pytest.raises(InvalidInput, match="DDP"):
        api.plan_convert(path, loras=[(lora, 1.0)])
    with pytest.raises(InvalidInput, match="DDP"):
        api.plan_convert_lora(lora, path)


@pytest.mark.parametrize("architecture", BARE)
def test_classes_without_an_output_layer(tmp_path: Path, architecture: str) -> None:
    message = refusal(renamed(tmp_path, str, architecture))
    assert f"{architecture}: a bare model, saved without its output layer" in message
    assert ("AutoModelForCausalLM" in message) == architecture.startswith(("Gemma3", "Bloom"))


@pytest.mark.parametrize("model", [m for m in [*FAMILIES, *MINIATURES] if "mini" in m.name], ids=lambda m: m.name)
def test_models_of_every_layout_are_not_taken_for_wrapped(tmp_path: Path, model: object) -> None:
    api.plan_convert(model.write(tmp_path), tmp_path / "x.gguf")  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_of_another_architecture_is_told_as_before(tmp_path: Path) -> None:
    path = renamed(tmp_path, lambda n: n.replace("q_proj", "w_proj"))
    assert "unknown to this architecture: model.layers.0.self_attn.w_proj.weight" in refusal(path)
