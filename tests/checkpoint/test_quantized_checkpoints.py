"""Checkpoints in 8 or 4 bits: each is told what it is and what to do; a setting that is left over is no obstacle."""

from math import prod
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.quantized_checkpoint import METHODS
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import write_json, write_shards
from ..helpers.families import FAMILIES
from ..helpers.lora_adapters import base

NBYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "I64": 8, "F64": 8}
MATRIX = "model.layers.0.mlp.up_proj"

Held = dict[str, tuple[str, tuple[int, ...]]]


def checkpoint(folder: Path, held: Held, config: dict[str, Any] | None = None, card: str = "", shards: int = 1) -> Path:
    path = folder / "m"
    path.mkdir()
    write_json(path / "config.json", {"architectures": ["Gemma3ForCausalLM"]} | (config or {}))
    (path / "README.md").write_text(card, encoding="utf-8")
    held = {"model.norm.weight": ("BF16", (8,))} | held
    tensors = {n: (d, s, bytes(prod(s) * NBYTES.get(d, 1))) for n, (d, s) in held.items()}
    write_shards(path, tensors, shards)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


LOAD = "load it with transformers, "
ORIGINAL = "convert the 16-bit checkpoint it was made from"
SAVED: dict[str, tuple[Held, dict[str, Any], str, str]] = {
    "bitsandbytes 8": (
        {f"{MATRIX}.weight": ("I8", (8, 8)), f"{MATRIX}.SCB": ("F32", (8,))},
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
        "to 8 bits by bitsandbytes",
        f"{LOAD}call model.dequantize(), save_pretrained the model and convert that; or {ORIGINAL}",
    ),
    "bitsandbytes 4": (
        {f"{MATRIX}.weight": ("U8", (32, 1)), f"{MATRIX}.weight.absmax": ("F32", (1,)),
         f"{MATRIX}.weight.quant_state.bitsandbytes__nf4": ("U8", (90,))},
        {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True},
        "to 4 bits by bitsandbytes",
        f"{LOAD}call model.dequantize()",
    ),
    "GPTQ": (
        {f"{MATRIX}.qweight": ("I32", (1, 8)), f"{MATRIX}.scales": ("F16", (1, 8)), f"{MATRIX}.g_idx": ("I32", (8,))},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        "by GPTQ",
        ORIGINAL,
    ),
    "AWQ": (
        {f"{MATRIX}.qweight": ("I32", (8, 1)), f"{MATRIX}.qzeros": ("I32", (1, 1))},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        "by AWQ or GPTQ",
        ORIGINAL,
    ),
    "AQLM": ({f"{MATRIX}.codes": ("I8", (8, 1, 1)), f"{MATRIX}.codebooks": ("F16", (1, 8))}, {"quant_method": "aqlm"},
             "by AQLM", ORIGINAL),
    "HQQ": ({f"{MATRIX}.W_q": ("U8", (4, 8)), f"{MATRIX}.scale": ("F16", (1, 8))}, {"quant_method": "hqq"},
            "by HQQ", ORIGINAL),
    "torchao": ({f"{MATRIX}._weight_qdata": ("I8", (8, 8))}, {"quant_method": "torchao"}, "by torchao", ORIGINAL),
    "compressed-tensors": (
        {f"{MATRIX}.weight_packed": ("I32", (8, 1)), f"{MATRIX}.weight_shape": ("I64", (2,))},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "by compressed-tensors",
        f"{LOAD}quantization_config=CompressedTensorsConfig(dequantize=True)",
    ),
    "FP8": (
        {f"{MATRIX}.weight": ("F8_E4M3", (8, 8)), f"{MATRIX}.weight_scale_inv": ("F32", (1, 1))},
        {"quant_method": "fp8"},
        "to FP8",
        f"{LOAD}quantization_config=FineGrainedFP8Config(dequantize=True)",
    ),
    "MXFP4": ({f"{MATRIX}_blocks": ("U8", (8, 1, 16)), f"{MATRIX}_scales": ("U8", (8, 1))}, {"quant_method": "mxfp4"},
              "to MXFP4", f"{LOAD}quantization_config=Mxfp4Config(dequantize=True)"),
    "MLX": (
        {f"{MATRIX}.weight": ("U32", (8, 1)), f"{MATRIX}.biases": ("BF16", (8, 1))},
        {"group_size": 64, "bits": 4},
        "by MLX",
        "mlx_lm.convert --dequantize --hf-path",
    ),
}  # fmt: skip


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("name", SAVED)
def test_the_method_is_named_with_what_to_do(tmp_path: Path, name: str, configured: bool) -> None:
    held, settings, what, advice = SAVED[name]
    path = checkpoint(tmp_path, held, {"quantization_config": settings} if configured else {})
    message = refusal(path)
    assert message.startswith(f"{path}: the weights are quantized {what} ({MATRIX}")
    assert advice in message


@pytest.mark.parametrize(
    ("dtype", "config", "what"),
    [
        ("F8_E4M3", {}, "to FP8"),
        ("F8_E5M2", {}, "to FP8"),
        ("I8", {}, "to 8-bit integers"),
        ("I8", {"quantization_config": {"quant_method": "new\nthing"}}, r"by 'new\nthing'"),
        ("U8", {"text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}}, "to 8 bits (FP8 or INT8)"),
        ("U32", {"quantization": {"group_size": 64, "bits": 4}}, "by MLX"),
    ],
)
def test_what_types_and_settings_tell(tmp_path: Path, dtype: str, config: dict[str, Any], what: str) -> None:
    path = checkpoint(tmp_path, {f"{MATRIX}.weight": (dtype, (8, 8))}, config)
    assert f": the weights are quantized {what} ({MATRIX}.weight is {dtype}); " in refusal(path)


def test_in_shards_too(tmp_path: Path) -> None:
    assert "quantized to FP8" in refusal(checkpoint(tmp_path, SAVED["FP8"][0], shards=2))


@pytest.mark.parametrize(
    "card",
    [
        "---\nbase_model: NbAiLab/borealis-4b\n---\n",
        "---\r\nlicense: x\r\nbase_model:\r\n- NbAiLab/borealis-4b\r\n---\r\n",
    ],
)
def test_the_original_that_the_model_card_names(tmp_path: Path, card: str) -> None:
    assert refusal(checkpoint(tmp_path, SAVED["GPTQ"][0], card=card)).endswith(f"{ORIGINAL}, NbAiLab/borealis-4b")


@pytest.mark.parametrize(
    "card", ["base_model: a/b", "---\nx: 1\n---\nbase_model: a/b", "---\nbase_model: a/b; rm -r\n---"]
)
def test_no_original_is_made_up(tmp_path: Path, card: str) -> None:
    assert refusal(checkpoint(tmp_path, SAVED["GPTQ"][0], card=card)).endswith(ORIGINAL)


@pytest.mark.parametrize("dtype", ["F64", "I64", "BOOL"])
def test_other_types_are_not_called_quantized(tmp_path: Path, dtype: str) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(InvalidInput, match=f"dtype '{dtype}'; only BF16, F16, F32 can be converted"):
        open_checkpoint(checkpoint(tmp_path, {"model.x": (dtype, (8,))}, config))


@pytest.mark.parametrize("ending", sorted({ending for method in METHODS for ending in method.endings}))
def test_scales_beside_floats_are_named(tmp_path: Path, ending: str) -> None:
    path = checkpoint(tmp_path, {f"{MATRIX}.weight": ("BF16", (8, 8)), f"{MATRIX}{ending}": ("F32", (8,))})
    assert f"are left over beside weights that are not: {MATRIX}{ending}; " in refusal(path)


def test_no_tensor_of_ours_is_taken_for_a_scale() -> None:
    endings = tuple(ending for method in METHODS for ending in method.endings)
    names = [name for family in FAMILIES for name in family.shapes(family.config)]
    assert names and not [name for name in [*names, *base("F32").tensors()] if name.endswith(endings)]


SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("model", [base("BF16"), *FAMILIES], ids=lambda model: model.name)
def test_a_setting_left_over_is_no_obstacle(tmp_path: Path, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = model.write(tmp_path)
    plain = api.plan_convert(path, tmp_path / "x.gguf")
    assert "quantized" not in caplog.text
    write_json(path / "config.json", model.config | {"quantization_config": SETTINGS})
    assert api.plan_convert(path, tmp_path / "x.gguf").header == plain.header
    assert caplog.text.count("the weights were quantized to 4 bits by bitsandbytes, but they are not") == 1
