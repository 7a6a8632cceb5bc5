"""Folders that hold an adapter where a model or a PEFT adapter is expected: what they are, and the command to type."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.adapter_folder import find_adapter, instead_of_model
from borealis_gguf.checkpoint.hub.download import missing
from borealis_gguf.errors import InvalidInput

from ..cli.test_cli import run
from ..helpers.lora_adapters import PLAIN, base

PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "NbAiLab/borealis-4b"}
MLX = {"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}, "model": "NbAiLab/borealis-4b"}


def adapter(path: Path, config: Any, weights: str = "adapter_model.safetensors") -> Path:
    path.mkdir(parents=True)
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / weights).write_bytes(b"")
    return path


def refusal(source: Path | str, *loras: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(source, loras=[(path, 1.0) for path in loras])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif("os.name == 'nt'", reason="the quoting of a POSIX shell")
@pytest.mark.parametrize("name", ["norsk", "blå bær", "it's"])
def test_the_command_names_base_and_folder_and_can_be_typed(tmp_path: Path, name: str) -> None:
    path = adapter(tmp_path / name, PEFT | {"base_model_name_or_path": "./my base; rm"})
    message = refusal(path)
    assert message.startswith(f"{path}: a LoRA adapter of ./my base; rm, not a model: borealis-gguf convert ")
    convert, quantize = message.partition("not a model: ")[2].split(", or ")
    assert shlex.split(convert) == ["borealis-gguf", "convert", "./my base; rm", "--lora", str(path)]
    assert shlex.split(quantize)[1:] == ["quantize", "PRESET", "-m", "./my base; rm", "--lora", str(path)]
    with pytest.raises(InvalidInput, match="a LoRA adapter of"):
        api.plan_quantize(path, ["Q8_0"])


def test_on_the_command_line(tmp_path: Path) -> None:
    adapter(tmp_path / "peft", PEFT)
    done = run("convert", "peft", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "borealis-gguf convert NbAiLab/borealis-4b --lora peft" in done.stderr


@pytest.mark.parametrize("named", [None, 5, "", "--lora", "a\nb", "x" * 300])
def test_a_base_that_cannot_be_typed_is_called_base(tmp_path: Path, named: Any) -> None:
    message = refusal(adapter(tmp_path / "peft", PEFT | {"base_model_name_or_path": named}))
    assert "a LoRA adapter, not a model: borealis-gguf convert BASE --lora" in message
    assert message.endswith("BASE is the model it was trained on")


def test_other_methods_of_peft_are_to_be_merged_there(tmp_path: Path) -> None:
    message = refusal(adapter(tmp_path / "peft", PEFT | {"peft_type": "IA3"}))
    assert (
        "a PEFT adapter ('IA3') of NbAiLab/borealis-4b, not a model: merge it with PEFT's merge_and_unload" in message
    )
    assert "--lora" not in message


@pytest.mark.parametrize("config", [MLX, {"lora_layers": 16, "model": MLX["model"]}, None])
def test_mlx_adapters_are_fused_first(tmp_path: Path, config: Any) -> None:
    path = adapter(tmp_path / "mlx", config, "adapters.safetensors")
    model = MLX["model"] if config else "BASE"
    command = f"mlx_lm.fuse --model {model} --adapter-path {path} --save-path {path}-fused --dequantize, then "
    for message in (refusal(path), refusal(base("BF16").write(tmp_path), path)):
        assert message.startswith(f"{path}: an MLX adapter")
        assert f"{command}borealis-gguf convert {path}-fused" in message


def test_adapters_in_subfolders_are_named(tmp_path: Path) -> None:
    source = base("BF16").write(tmp_path)
    outer = tmp_path / "run"
    adapter(outer / "norsk", PEFT)
    assert f"--lora {outer / 'norsk'}" in refusal(outer)
    assert f"its folder norsk is a LoRA adapter of NbAiLab/borealis-4b: give --lora {outer / 'norsk'}" in refusal(
        source, outer
    )
    adapter(outer / "checkpoint-500", PEFT)
    message = refusal(source, outer)
    assert (
        f"its folders checkpoint-500, norsk are adapters: give --lora {outer / 'checkpoint-500'} or --lora" in message
    )


def test_an_adapter_beside_the_configuration_of_its_base(tmp_path: Path) -> None:
    """Some trainers copy config.json and the tokenizer into the adapter's folder."""
    path = adapter(tmp_path / "peft", PEFT)
    (path / "config.json").write_text('{"architectures": ["Gemma3ForCausalLM"]}', encoding="utf-8")
    assert "a LoRA adapter of NbAiLab/borealis-4b, not a model" in refusal(path)


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    source = base("BF16").write(tmp_path)
    assert "holds no adapter_config.json; it is a model itself" in refusal(source, source)
    assert find_adapter(source) is None
    assert instead_of_model(tmp_path / "none") is None


def test_repositories_of_adapters_on_the_hub(tmp_path: Path) -> None:
    command = "hf download a/norsk --local-dir norsk, then borealis-gguf convert {} --lora norsk"
    assert command.format("BASE") in str(missing("a/norsk", ["adapter_config.json", "README.md"]))
    path = adapter(tmp_path / "peft", PEFT)
    assert command.format("NbAiLab/borealis-4b") in str(missing("a/norsk", ["adapter_config.json"], path))
    assert missing("a/norsk", ["adapter_config.json", "config.json", "model.safetensors"]) is None


def test_a_good_adapter_is_still_read(tmp_path: Path) -> None:
    api.plan_convert(base("BF16").write(tmp_path), tmp_path / "x.gguf", loras=[(PLAIN.write(tmp_path), 1.0)])
