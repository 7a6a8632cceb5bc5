"""Reads RoPE base and scaling (linear, YaRN) from config.json, and writes their metadata keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.types import KV
from ...errors import InvalidInput
from ..config_fields import integer, mapping, number, only

SCALING_KEYS = {
    "original_max_position_embeddings": ("original_context_length", GGUFValueType.UINT32),
    "extrapolation_factor": ("yarn_ext_factor", GGUFValueType.FLOAT32),
    "attention_factor": ("yarn_attn_factor", GGUFValueType.FLOAT32),
    "beta_fast": ("yarn_beta_fast", GGUFValueType.FLOAT32),
    "beta_slow": ("yarn_beta_slow", GGUFValueType.FLOAT32),
}


@dataclass(frozen=True, slots=True)
class Scaling:
    """`kind` is default (none), linear or yarn; `extra` holds the other fields of a YaRN configuration."""

    kind: str = "default"
    factor: float = 1.0
    extra: tuple[tuple[str, int | float], ...] = ()


def read_rope(where: str, config: Mapping[str, Any], theta: float) -> tuple[float, Scaling]:
    """Returns base and scaling of a model with one kind of layer, from `rope_theta` and `rope_scaling`, or from
    `rope_parameters` (transformers 5). `theta` is the default base."""
    parameters = {**mapping(where, config, "rope_parameters"), **mapping(where, config, "rope_scaling")}
    for values in (config, parameters):
        only(f"{where}: rope scaling", values, "partial_rotary_factor", 1, 1.0)
    base = number(where, parameters, "rope_theta", number(where, config, "rope_theta", theta))
    return base, read_scaling(f"{where}: rope scaling", parameters)


def read_scaling(where: str, values: Mapping[str, Any]) -> Scaling:
    """Reads a scaling. Raises InvalidInput for kinds other than linear and yarn, and fields without a GGUF key."""
    kind = values.get("type") or values.get("rope_type") or "default"
    if kind == "default":
        return Scaling()
    allowed = {"rope_type", "type", "rope_theta", "factor", "partial_rotary_factor"}
    allowed |= SCALING_KEYS.keys() if kind == "yarn" else set()
    unknown = sorted(str(key) for key, value in values.items() if key not in allowed and value is not None)
    if kind not in ("linear", "yarn") or unknown:
        raise InvalidInput(f"{where}: {', '.join([f'type {kind!r}', *unknown])}; only linear and yarn are known")
    if values.get("factor") is None or (kind == "yarn" and values.get("original_max_position_embeddings") is None):
        raise InvalidInput(
            f"{where}: {kind} needs a factor" + (" and original_max_position_embeddings" * (kind == "yarn"))
        )
    extra = tuple((key, _extra(where, values, key)) for key in SCALING_KEYS if values.get(key) is not None)
    return Scaling(kind, number(where, values, "factor", 1.0), extra)


def _extra(where: str, values: Mapping[str, Any], key: str) -> int | float:
    if SCALING_KEYS[key][1] == GGUFValueType.UINT32:
        return integer(where, values, key, 0)
    return number(where, values, key, 0)


def scaling_keys(architecture: str, scaling: Scaling) -> list[KV]:
    """Returns the keys of `scaling`, none for the default, in the order llama.cpp's converter writes them."""
    if scaling.kind == "default":
        return []
    prefix = f"{architecture}.rope.scaling"
    return [
        KV(f"{prefix}.type", GGUFValueType.STRING, scaling.kind),
        KV(f"{prefix}.factor", GGUFValueType.FLOAT32, scaling.factor),
        *(KV(f"{prefix}.{SCALING_KEYS[key][0]}", SCALING_KEYS[key][1], value) for key, value in scaling.extra),
    ]
