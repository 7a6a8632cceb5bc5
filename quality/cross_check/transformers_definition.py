"""What transformers computes with a checkpoint, as far as a GGUF must say the same: weights by name, and settings.

This is told a second time on purpose. `convert` has tables of its own, and nothing here comes from them: what is wrong
there, or here, makes the two disagree. Sources are transformers' configuration and model classes, and what llama.cpp
does with the tensors of a GGUF.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

Values = Mapping[str, Any]
"""The settings of a model by transformers' names; None for what it does not have."""


@dataclass(frozen=True, slots=True)
class Order:
    """`rows(n, values)` are the checkpoint's rows (int64 [n]) in the order a GGUF has them; `text` says which."""

    text: str
    rows: Callable[[int, Values], np.ndarray]


@dataclass(frozen=True, slots=True)
class Weight:
    """One kind of module, `{}` for the block: its name in the checkpoint, without what wraps the model, and in GGUF.

    Both its weight and its bias, if it has one. `add` is what the model adds to a weight before it multiplies by it.
    """

    checkpoint: str
    gguf: str
    add: float = 0.0
    order: Order | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """One architecture. `keys` maps GGUF's keys, without `prefix`, to names in what `values(config)` returns."""

    architecture: str
    prefix: str
    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    keys: Mapping[str, str]
    weights: tuple[Weight, ...]
    blocks: str = "num_hidden_layers"


def definition_of(config: Mapping[str, Any], *, vision: bool = False) -> tuple[str, Definition | None]:
    """What config.json calls its architecture, and its definition; None for one that is not defined here."""
    lists = [part.get("architectures") for part in (_part(config, "text_config"), config)]
    names = [names[0] for names in lists if isinstance(names, list) and names and isinstance(names[0], str)]
    name = names[0] if names else ""
    return name, (VISION if vision else DEFINITIONS).get(name)


def _part(values: Values, name: str) -> Mapping[str, Any]:
    """An object inside a configuration; empty where there is none."""
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


# --- settings -------------------------------------------------------------------------------------------------------

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
"""What BLOOM was trained on; its configuration class has no such field, its published files call it `seq_length`."""

SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}


def _decoder(defaults: Values) -> Callable[[Values], dict[str, Any]]:
    """Llama and its like: class defaults under what config.json says, and what the class derives from both."""

    def values(config: Values) -> dict[str, Any]:
        read = _said(defaults, config)
        read |= _rope(read)
        if config.get("num_key_value_heads", read["num_key_value_heads"]) is None:
            read["num_key_value_heads"] = read["num_attention_heads"]
        if read.get("head_dim", 0) is None:
            read["head_dim"] = read["hidden_size"] // read["num_attention_heads"]
        return read

    return values


def _gemma3(config: Values) -> dict[str, Any]:
    read = _said(GEMMA3, _part(config, "text_config") or config)
    kinds = read.get("layer_types") or ["sliding_attention"] * (read["sliding_window_pattern"] != 1)
    window = read["sliding_window"] if "sliding_attention" in kinds else None
    return read | _rope(read) | {"window": window, "softcap": read.get("final_logit_softcapping") or None}


def _bloom(config: Values) -> dict[str, Any]:
    read = _said(BLOOM, config)
    for old, name in (("n_embed", "hidden_size"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head")):
        if config.get(name) is None:
            read[name] = read.get(old, read[name])
    lengths = [read.get(name) for name in ("seq_length", "max_position_embeddings", "n_positions")]
    context = next((length for length in lengths if length is not None), BLOOM_CONTEXT)
    return read | {"context": context, "4 × hidden_size": 4 * read["hidden_size"]}


def _siglip(config: Values) -> dict[str, Any]:
    read = _said(SIGLIP, _part(config, "vision_config"))
    side = isqrt(config.get("mm_tokens_per_image") or 256)
    pool = read["image_size"] // read["patch_size"] // side
    text = _said(GEMMA3, _part(config, "text_config"))["hidden_size"]
    return read | {"text hidden_size": text, "pooled side": None if pool == 4 else pool}


def _said(defaults: Values, config: Values) -> dict[str, Any]:
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def _rope(read: Values) -> dict[str, Any]:
    """Rotary positions from either dialect: flat fields, or `rope_parameters`, there by kind of layer for Gemma 3."""
    new = _part(read, "rope_parameters")
    full = {**new, **_part(new, "full_attention"), **_part(read, "rope_scaling")}
    local = _part(new, "sliding_attention")
    kind = full.get("rope_type") or full.get("type") or "default"
    stretched = full if kind != "default" else {}
    return {
        "rope_theta": full.get("rope_theta", read["rope_theta"]),
        "rope_local_base_freq": local.get("rope_theta", read.get("rope_local_base_freq")),
        "rope_type": kind if stretched else None,
        "rope factor": stretched.get("factor"),
        "rope original length": stretched.get("original_max_position_embeddings"),
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

# --- weights --------------------------------------------------------------------------------------------------------


def _turned(heads: str) -> Order:
    """transformers turns columns i and i + half of a head together, llama.cpp columns 2 i and 2 i + 1."""
    text = "the two halves of each head's rows by turns"
    return Order(text, lambda n, values: np.arange(n).reshape(values[heads], 2, -1).swapaxes(1, 2).ravel())


QKV = Order(
    "all heads' q, then k, then v",
    lambda n, values: np.arange(n).reshape(values["n_head"], 3, -1).swapaxes(0, 1).ravel(),
)
"""BLOOM's `_split_heads` views the fused rows as [heads, 3, head_dim]."""

ENDS = (Weight("embed_tokens", "token_embd"), Weight("lm_head", "output"))
PROJECTIONS = (
    Weight("layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    Weight("layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    Weight("layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    Weight("layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    Weight("layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
)
LLAMA_NORMS = (
    Weight("norm", "output_norm"),
    Weight("layers.{}.input_layernorm", "blk.{}.attn_norm"),
    Weight("layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
)
LLAMA_WEIGHTS = (
    *(*ENDS, *PROJECTIONS, *LLAMA_NORMS),
    Weight("layers.{}.self_attn.q_proj", "blk.{}.attn_q", order=_turned("num_attention_heads")),
    Weight("layers.{}.self_attn.k_proj", "blk.{}.attn_k", order=_turned("num_key_value_heads")),
)
AS_THEY_STAND = (
    Weight("layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    Weight("layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
)
"""llama.cpp turns the halves of a head in these architectures, as transformers does."""

QWEN2_WEIGHTS = (*ENDS, *PROJECTIONS, *LLAMA_NORMS, *AS_THEY_STAND)
GEMMA3_WEIGHTS = (
    *(*ENDS, *PROJECTIONS, *AS_THEY_STAND),
    # Gemma3RMSNorm multiplies by 1 + weight, llama.cpp by the weight.
    Weight("norm", "output_norm", 1.0),
    Weight("layers.{}.input_layernorm", "blk.{}.attn_norm", 1.0),
    Weight("layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", 1.0),
    Weight("layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", 1.0),
    Weight("layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", 1.0),
    Weight("layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", 1.0),
    Weight("layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", 1.0),
)
BLOOM_WEIGHTS = (
    Weight("word_embeddings", "token_embd"),
    Weight("word_embeddings_layernorm", "token_embd_norm"),
    Weight("lm_head", "output"),
    Weight("ln_f", "output_norm"),
    Weight("h.{}.input_layernorm", "blk.{}.attn_norm"),
    Weight("h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", order=QKV),
    Weight("h.{}.self_attention.dense", "blk.{}.attn_output"),
    Weight("h.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    Weight("h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"),
    Weight("h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"),
)
SIGLIP_WEIGHTS = (
    Weight("embeddings.patch_embedding", "v.patch_embd"),
    Weight("embeddings.position_embedding", "v.position_embd"),
    Weight("post_layernorm", "v.post_ln"),
    Weight("encoder.layers.{}.layer_norm1", "v.blk.{}.ln1"),
    Weight("encoder.layers.{}.layer_norm2", "v.blk.{}.ln2"),
    Weight("encoder.layers.{}.self_attn.q_proj", "v.blk.{}.attn_q"),
    Weight("encoder.layers.{}.self_attn.k_proj", "v.blk.{}.attn_k"),
    Weight("encoder.layers.{}.self_attn.v_proj", "v.blk.{}.attn_v"),
    Weight("encoder.layers.{}.self_attn.out_proj", "v.blk.{}.attn_out"),
    Weight("encoder.layers.{}.mlp.fc1", "v.blk.{}.ffn_up"),
    Weight("encoder.layers.{}.mlp.fc2", "v.blk.{}.ffn_down"),
    Weight("mm_input_projection_weight", "mm.input_projection"),
    Weight("mm_soft_emb_norm", "mm.soft_emb_norm", 1.0),  # a Gemma3RMSNorm, unlike the tower's
)

_GEMMA3 = Definition("gemma3", "gemma3", _gemma3, GEMMA3_KEYS, GEMMA3_WEIGHTS)
DEFINITIONS = {
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "MistralForCausalLM": Definition("llama", "llama", _decoder(MISTRAL), LLAMA_KEYS, LLAMA_WEIGHTS),
    "LlamaForCausalLM": Definition("llama", "llama", _decoder(LLAMA), LLAMA_KEYS, LLAMA_WEIGHTS),
    "Qwen2ForCausalLM": Definition("qwen2", "qwen2", _decoder(QWEN2), DECODER_KEYS, QWEN2_WEIGHTS),
    "BloomForCausalLM": Definition("bloom", "bloom", _bloom, BLOOM_KEYS, BLOOM_WEIGHTS, blocks="n_layer"),
}
VISION = {"Gemma3ForConditionalGeneration": Definition("clip", "clip.vision", _siglip, SIGLIP_KEYS, SIGLIP_WEIGHTS)}
