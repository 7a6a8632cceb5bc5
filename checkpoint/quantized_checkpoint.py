"""Refuses checkpoints whose weights are quantized already, naming the method and a way back to 16 bits.

A method is recognized by tensor names that no other method has, by config.json, or by the tensors' dtypes.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .adapter_folder import command_line
from .file_access import open_regular, quote

log = logging.getLogger("borealis_gguf")

CARD_BYTES = 64 << 10
BASE_MODEL = re.compile(
    r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w.-]{1,96}/[\w.-]{1,96})[\"']?[ \t]*$", re.MULTILINE | re.ASCII
)

LOAD = "load it with transformers, {}, save_pretrained the model and convert that"
DEQUANTIZE = LOAD.format("call model.dequantize()")
BY_CONFIG = LOAD.format("quantization_config={}(dequantize=True)")
DEQUANTIZE_MLX = "mlx_lm.convert --dequantize"


@dataclass(frozen=True, slots=True)
class Method:
    """A way to store weights in few bits.

    `endings` are endings of tensor names that no other method has; `named` are values of quant_method in config.json,
    or keys that are true there. `advice` is a way back to 16 bits, if one exists.
    """

    what: str
    endings: tuple[str, ...]
    named: tuple[str, ...]
    advice: str | None = None


METHODS = (
    Method("to 8 bits by bitsandbytes", (".SCB", ".weight_format"), ("load_in_8bit",), DEQUANTIZE),
    Method(
        "to 4 bits by bitsandbytes",
        (".absmax", ".quant_map", ".nested_quant_map", ".bitsandbytes__nf4", ".bitsandbytes__fp4"),
        ("load_in_4bit", "bitsandbytes"),
        DEQUANTIZE,
    ),
    Method("by GPTQ", (".g_idx",), ("gptq",)),
    Method("by AWQ or GPTQ", (".qweight", ".qzeros"), ("awq",)),
    Method("by AQLM", (".codes", ".codebooks"), ("aqlm",)),
    Method("by VPTQ", (".centroids.weight", ".res_centroids.weight"), ("vptq",)),
    Method("by HQQ", (".W_q",), ("hqq",)),
    Method("by Quanto", (".weight._data", ".weight._scale"), ("quanto",)),
    Method("by EETQ", (".weight_scales",), ("eetq",)),
    Method("by MLX", (".biases",), ("group_size",), DEQUANTIZE_MLX),
    Method("to FP8", (".weight_scale_inv",), ("fp8",), BY_CONFIG.format("FineGrainedFP8Config")),
    Method("to MXFP4", ("_blocks",), ("mxfp4",), BY_CONFIG.format("Mxfp4Config")),
    Method("to NVFP4", (".weight_scale_2",), ("nvfp4", "modelopt")),
    Method("by torchao", ("_weight_qdata", ".weight:_data"), ("torchao",)),
    Method(
        "by compressed-tensors",
        (".weight_packed", ".weight_shape", ".weight_zero_point"),
        ("compressed-tensors",),
        BY_CONFIG.format("CompressedTensorsConfig"),
    ),
    Method("to 8 bits (FP8 or INT8)", (".weight_scale", ".input_scale"), ("fbgemm_fp8", "bitnet")),
)
DTYPES = {"F8": "to FP8", "I8": "to 8-bit integers", "U8": "to packed integers", "I32": "to packed integers",
          "U32": "to packed integers", "F4": "to FP4", "F6_": "to FP6"}  # fmt: skip
"""Prefixes of dtypes, used when neither tensor names nor config.json name the method."""


def refuse_dtypes(
    where: Path, dtypes: Mapping[str, str], config: Mapping[str, Any], known: Iterable[str], *, label: str | None = None
) -> None:
    """Raises InvalidInput, naming the quantization method, if a dtype outside `known` comes from quantization.

    `label` replaces the folder `where` in messages for a checkpoint on the Hub.
    """
    name, dtype = next((name, dtype) for name, dtype in dtypes.items() if dtype not in known)
    kind = next((text for start, text in DTYPES.items() if dtype.startswith(start)), None)
    method = _by_tensor_names(dtypes, config) or (method_named(config) or Method(kind, (), ()) if kind else None)
    if method is not None:
        method_text = f"{method.what} ({_unquoted(name)} is {_unquoted(dtype)})"
        raise InvalidInput(
            f"{label or where}: the weights are quantized {method_text}; {_advice(where, method, label)}"
        )


def refuse_leftovers(folder: Path, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Raises InvalidInput for leftover scales of quantized weights beside float weights."""
    names = list(names)
    method = _by_tensor_names(names, config)
    if method is None:
        return
    leftovers = [name for name in names if name.endswith(method.endings)]
    listed = ", ".join(map(_unquoted, leftovers[:3])) + (f" and {len(leftovers) - 3} more" if leftovers[3:] else "")
    raise InvalidInput(
        f"{folder}: tensors of weights that were quantized {method.what} are left over beside weights that are not: "
        f"{listed}; whether the weights were multiplied with their scales cannot be known: {_advice(folder, method)}"
    )


def method_named(config: Mapping[str, Any]) -> Method | None:
    """Returns the quantization method that config.json names, known or not; None if it names none."""
    for settings in _quantization_settings(config):
        name = str(settings.get("quant_method") or "")
        return _by_config(config) or Method(f"by {quote(name, 30)}" if name else "(quantization_config)", (), ())
    return None


def warn_of_settings(where: Path, config: Mapping[str, Any]) -> None:
    """Warns when config.json names a quantization method though the weights are not quantized."""
    if method := method_named(config):
        log.warning(
            "%s: config.json says that the weights were quantized %s, but they are not: they are converted as they are",
            where,
            method.what,
        )


def _by_config(config: Mapping[str, Any]) -> Method | None:
    for settings in _quantization_settings(config):
        settings_names = {str(settings.get("quant_method")), *(key for key, value in settings.items() if value)}
        matching = [method for method in METHODS if settings_names.intersection(method.named)]
        # group_size alone means MLX; other methods set quant_method too
        return next((m for m in matching if m.what != "by MLX" or "quant_method" not in settings), None)
    return None


def _quantization_settings(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    parts = [config, *(config.get(key) for key in ("text_config", "vision_config"))]
    keys = ("quantization_config", "quantization")
    kept = [part.get(key) for part in parts if isinstance(part, Mapping) for key in keys]
    return (settings for settings in kept if isinstance(settings, Mapping) and settings)


def _by_tensor_names(names: Iterable[str], config: Mapping[str, Any]) -> Method | None:
    """Returns the method whose tensor names occur; if several fit, the one that config.json names."""
    endings = tuple(ending for method in METHODS for ending in method.endings)
    marked = [name for name in names if name.endswith(endings)]
    matching = [method for method in METHODS if any(name.endswith(method.endings) for name in marked)]
    return (_by_config(config) or matching[0]) if matching else None


def _unquoted(text: str) -> str:
    return quote(text).strip("'")


def _advice(folder: Path, method: Method, label: str | None = None) -> str:
    original = _base_model(folder)
    fetch = f"convert the 16-bit checkpoint it was made from{f', {original}' if original else ''}"
    if method.advice is None:
        return fetch
    advice = method.advice
    if advice == DEQUANTIZE_MLX:
        paths = ("--hf-path", label or str(folder), "--mlx-path", f"{(label or folder.name).rpartition('/')[2]}-16bit")
        advice = f"{command_line(*advice.split(), *paths)}, and convert that"
    return f"{advice}; or {fetch}"


def _base_model(folder: Path) -> str | None:
    """Returns the base model that the model card names, or None."""
    try:
        with open_regular(folder / "README.md")[0] as file:
            card = file.read(CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except (InvalidInput, OSError):
        return None
    block = card.split("\n---", 1)[0] if card.startswith("---") else ""
    match = BASE_MODEL.search(block)
    return match[1] if match else None
