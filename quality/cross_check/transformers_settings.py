"""Each architecture's settings as transformers' configuration classes read them, and the GGUF keys that hold them."""

from collections.abc import Callable
from math import isqrt
from typing import Any

from .definition import Settings, config_part

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "head_dim": None,
}
MISTRAL = LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
QWEN2 = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
GEMMA3 = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
BLOOM = {"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "layer_norm_epsilon": 1e-5}
BLOOM_CONTEXT = 2048
"""The context BLOOM was trained on: its configuration class has no such field, its published files say `seq_length`."""

SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}


def decoder_settings(defaults: Settings) -> Callable[[Settings], dict[str, Any]]:
    """Llama and similar decoders: config.json over the class's defaults, and what the class derives from both."""

    def settings(config: Settings) -> dict[str, Any]:
        read = _configured(defaults, config)
        read |= _rope(read)
        if config.get("num_key_value_heads", read["num_key_value_heads"]) is None:
            read["num_key_value_heads"] = read["num_attention_heads"]
        if read.get("head_dim", 0) is None:
            read["head_dim"] = read["hidden_size"] // read["num_attention_heads"]
        return read

    return settings


def gemma3_settings(config: Settings) -> dict[str, Any]:
    read = _configured(GEMMA3, config_part(config, "text_config") or config)
    kinds = read.get("layer_types") or ["sliding_attention"] * (read["sliding_window_pattern"] != 1)
    window = read["sliding_window"] if "sliding_attention" in kinds else None
    return read | _rope(read) | {"window": window, "softcap": read.get("final_logit_softcapping") or None}


def bloom_settings(config: Settings) -> dict[str, Any]:
    read = _configured(BLOOM, config)
    for old, name in (("n_embed", "hidden_size"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head")):
        if config.get(name) is None:
            read[name] = read.get(old, read[name])
    lengths = [read.get(name) for name in ("seq_length", "max_position_embeddings", "n_positions")]
    context = next((length for length in lengths if length is not None), BLOOM_CONTEXT)
    return read | {"context": context, "4 × hidden_size": 4 * read["hidden_size"]}


def siglip_settings(config: Settings) -> dict[str, Any]:
    read = _configured(SIGLIP, config_part(config, "vision_config"))
    side = isqrt(config.get("mm_tokens_per_image") or 256)
    pool = read["image_size"] // read["patch_size"] // side
    text = _configured(GEMMA3, config_part(config, "text_config"))["hidden_size"]
    return read | {"text hidden_size": text, "pooled side": None if pool == 4 else pool}


def _configured(defaults: Settings, config: Settings) -> dict[str, Any]:
    """The values of `config` over `defaults`."""
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def _rope(read: Settings) -> dict[str, Any]:
    """Rotary positions from flat fields, or from the newer `rope_parameters` (by kind of layer for Gemma 3)."""
    new = config_part(read, "rope_parameters")
    full = {**new, **config_part(new, "full_attention"), **config_part(read, "rope_scaling")}
    local = config_part(new, "sliding_attention")
    kind = full.get("rope_type") or full.get("type") or "default"
    scaling = full if kind != "default" else {}
    return {
        "rope_theta": full.get("rope_theta", read["rope_theta"]),
        "rope_local_base_freq": local.get("rope_theta", read.get("rope_local_base_freq")),
        "rope_type": kind if scaling else None,
        "rope factor": scaling.get("factor"),
        "rope original length": scaling.get("original_max_position_embeddings"),
    }


DECODER_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "rope factor",
    "rope.scaling.original_context_length": "rope original length",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}
LLAMA_KEYS = DECODER_KEYS | {"vocab_size": "vocab_size", "rope.dimension_count": "head_dim"}
GEMMA3_KEYS = DECODER_KEYS | {
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window": "window",
    "final_logit_softcapping": "softcap",
}
BLOOM_KEYS = {
    "block_count": "n_layer",
    "context_length": "context",
    "embedding_length": "hidden_size",
    "feed_forward_length": "4 × hidden_size",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
SIGLIP_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "projection_dim": "text hidden_size",
    "projector.scale_factor": "pooled side",
}
FLOATS = {
    *("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
    *("rope_theta", "rope_local_base_freq", "rope factor", "softcap"),
}
"""The settings that llama.cpp wants as float32; numbers among the others it wants as uint32, and loads no other."""
