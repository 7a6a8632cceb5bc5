"""Reads Gemma 3's config.json as transformers 4 or 5 writes it, and refuses settings that llama.cpp ignores.

Defaults are those of transformers' Gemma3TextConfig: the published 4b configuration omits most fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInput
from ..config_fields import integer, mapping, number, only
from .rope_scaling import Scaling, read_scaling

PATTERN = 6
"""Every sixth layer has full attention, the others a sliding window; llama.cpp hard-codes this pattern."""

WIDE_SCALE_LAYERS = 62
"""With this number of layers (27b) llama.cpp scales attention by hidden/heads, else by head_dim."""


@dataclass(frozen=True, slots=True)
class Rope:
    """RoPE bases of the full-attention and sliding-window layers, and the scaling of the former."""

    theta: float
    local_theta: float
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class Gemma3Config:
    """The validated config.json of the text model. `window` is None if no layer has a sliding window."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int
    eps: float
    rope: Rope
    window: int | None
    softcap: float | None

    def sizes(self) -> dict[str, int]:
        """Returns the lengths of the axes that ROWS name."""
        return {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "feed-forward": self.feed_forward,
            "head_dim": self.head_dim,
            "heads × head_dim": self.heads * self.head_dim,
            "kv heads × head_dim": self.kv_heads * self.head_dim,
        }


def text_config(where: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(where, config, "text_config") or config


def read_config(where: str, config: Mapping[str, Any]) -> Gemma3Config:
    """Reads config.json. Raises InvalidInput for values out of range, and for settings that llama.cpp ignores."""
    text = text_config(where, config)
    layers = integer(where, text, "num_hidden_layers", 26)
    result = Gemma3Config(
        layers=layers,
        hidden=integer(where, text, "hidden_size", 2304),
        feed_forward=integer(where, text, "intermediate_size", 9216),
        heads=integer(where, text, "num_attention_heads", 8),
        kv_heads=integer(where, text, "num_key_value_heads", 4),
        head_dim=integer(where, text, "head_dim", 256),
        context=integer(where, text, "max_position_embeddings", 131072),
        vocabulary=integer(where, text, "vocab_size", 262208),
        eps=number(where, text, "rms_norm_eps", 1e-6),
        rope=_rope(where, text),
        window=_window(where, text, layers),
        softcap=number(where, text, "final_logit_softcapping", 0) if text.get("final_logit_softcapping") else None,
    )
    _check_runtime(where, text, result)
    return result


def _check_runtime(where: str, text: Mapping[str, Any], config: Gemma3Config) -> None:
    """Refuses settings that no GGUF key can express."""
    if config.heads % config.kv_heads:
        raise InvalidInput(f"{where}: {config.heads} attention heads cannot share {config.kv_heads} key-value heads")
    scale = config.hidden // config.heads if config.layers == WIDE_SCALE_LAYERS else config.head_dim
    default = 256 if "query_pre_attn_scalar" not in text else None
    only(
        where,
        {**text, "query_pre_attn_scalar": default or text["query_pre_attn_scalar"]},
        "query_pre_attn_scalar",
        scale,
    )
    only(where, text, "hidden_activation", "gelu_pytorch_tanh")
    only(where, text, "attention_bias", False)
    only(where, text, "use_bidirectional_attention", False)
    only(where, text, "attn_logit_softcapping")


def _window(where: str, text: Mapping[str, Any], layers: int) -> int | None:
    """Returns the sliding window, or None if every layer has full attention."""
    types = text.get("layer_types")
    if types is None:
        step = integer(where, text, "sliding_window_pattern", PATTERN)
        full = step == 1
        is_supported = full or step == PATTERN or layers < min(step, PATTERN)
    else:
        if not isinstance(types, list) or len(types) != layers:
            has = f"has {len(types)} entries" if isinstance(types, list) else "is no list"
            raise InvalidInput(
                f"{where}: layer_types {has}, but there are {layers} layers, and each must have one; a merge that "
                "repeats or leaves out layers must list those of its own"
            )
        full = all(kind == "full_attention" for kind in types)
        expected = ("full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention" for i in range(layers))
        is_supported = full or all(kind == other for kind, other in zip(types, expected, strict=False))
    if not is_supported:
        raise InvalidInput(
            f"{where}: layer_types and sliding_window_pattern make other layers attend to everything than each "
            f"{PATTERN}th, which is all llama.cpp's runtime can do; the GGUF would be silently wrong"
        )
    return None if full else integer(where, text, "sliding_window", 4096)


def _rope(where: str, text: Mapping[str, Any]) -> Rope:
    """Reads `rope_theta`, `rope_local_base_freq`, `rope_scaling` of transformers 4, or `rope_parameters` of 5."""
    parameters = mapping(where, text, "rope_parameters")
    if parameters and not parameters.keys() <= {"full_attention", "sliding_attention"}:
        raise InvalidInput(f"{where}: rope_parameters must hold full_attention and sliding_attention, nothing else")
    full = {**mapping(where, parameters, "full_attention"), **mapping(where, text, "rope_scaling")}
    sliding = mapping(where, parameters, "sliding_attention")
    only(f"{where}: rope_parameters.sliding_attention", sliding, "rope_type", "default")
    only(f"{where}: rope_parameters.sliding_attention", sliding, "factor", 1, 1.0)
    theta = number(where, full, "rope_theta", number(where, text, "rope_theta", 1e6))
    local_theta = number(where, sliding, "rope_theta", number(where, text, "rope_local_base_freq", 1e4))
    rope = f"{where}: rope scaling"
    for parameter in (text, full, sliding):
        only(rope, parameter, "partial_rotary_factor", 1, 1.0)
    return Rope(theta, local_theta, read_scaling(rope, full))
