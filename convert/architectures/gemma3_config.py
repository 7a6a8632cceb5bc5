"""Gemma 3's config.json, in both dialects, checked against what llama.cpp's runtime takes for granted.

Defaults are those of transformers' Gemma3TextConfig: the published 4b configuration says little more than its widths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInput
from ..config_fields import integer, mapping, number, only
from .rope_scaling import Scaling, read_scaling

PATTERN = 6
"""Every sixth layer attends to everything, the others within the window. No key says so: the runtime assumes it."""

WIDE_SCALE_LAYERS = 62
"""At this number of layers (27b) the runtime scales attention by hidden/heads, else by head_dim."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: the bases of the global and the local layers, and how the global ones are stretched."""

    theta: float
    local_theta: float
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class Gemma3Config:
    """What config.json says of the text model, checked. `window` is None when no layer has one."""

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
        """The axes that ROWS name."""
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
    """Both dialects of config.json. Raises InvalidInput for values out of range, and for what the runtime ignores."""
    text = text_config(where, config)
    layers = integer(where, text, "num_hidden_layers", 26)
    read = Gemma3Config(
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
    _check_runtime(where, text, read)
    return read


def _check_runtime(where: str, text: Mapping[str, Any], config: Gemma3Config) -> None:
    """Refuse what no GGUF key can say."""
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
    """The sliding window; None when every layer attends to everything."""
    types = text.get("layer_types")
    if types is None:
        step = integer(where, text, "sliding_window_pattern", PATTERN)
        full = step == 1
        agrees = full or step == PATTERN or layers < min(step, PATTERN)
    else:
        if not isinstance(types, list) or len(types) != layers:
            has = f"has {len(types)} entries" if isinstance(types, list) else "is no list"
            raise InvalidInput(
                f"{where}: layer_types {has}, but there are {layers} layers, and each must have one; a merge that "
                "repeats or leaves out layers must list those of its own"
            )
        full = all(kind == "full_attention" for kind in types)
        expected = ("full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention" for i in range(layers))
        agrees = full or all(kind == other for kind, other in zip(types, expected, strict=False))
    if not agrees:
        raise InvalidInput(
            f"{where}: layer_types and sliding_window_pattern make other layers attend to everything than each "
            f"{PATTERN}th, which is all llama.cpp's runtime can do; the GGUF would be silently wrong"
        )
    return None if full else integer(where, text, "sliding_window", 4096)


def _rope(where: str, text: Mapping[str, Any]) -> Rope:
    """Rotary parameters: v4 has `rope_theta`, `rope_local_base_freq`, `rope_scaling`; v5 has `rope_parameters`."""
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
