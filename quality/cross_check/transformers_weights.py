"""The weights of each architecture as transformers' model classes name them, and as llama.cpp names and orders them."""

import numpy as np

from .definition import AxisOrder, Weight


def _interleaved(heads: str) -> AxisOrder:
    """Rotary pairs are columns i and i + half of a head in transformers, columns 2 i and 2 i + 1 in llama.cpp."""
    text = "the two halves of each head's rows by turns"
    return AxisOrder(text, lambda n, settings: np.arange(n).reshape(settings[heads], 2, -1).swapaxes(1, 2).ravel())


QKV = AxisOrder(
    "all heads' q, then k, then v",
    lambda n, settings: np.arange(n).reshape(settings["n_head"], 3, -1).swapaxes(0, 1).ravel(),
)
"""BLOOM's `_split_heads` views the fused rows as [heads, 3, head_dim]."""

EMBEDDINGS = (Weight("embed_tokens", "token_embd"), Weight("lm_head", "output"))
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
    *(*EMBEDDINGS, *PROJECTIONS, *LLAMA_NORMS),
    Weight("layers.{}.self_attn.q_proj", "blk.{}.attn_q", order=_interleaved("num_attention_heads")),
    Weight("layers.{}.self_attn.k_proj", "blk.{}.attn_k", order=_interleaved("num_key_value_heads")),
)
UNORDERED_QK = (
    Weight("layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    Weight("layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
)
"""In these architectures llama.cpp rotates the halves of a head, as transformers does."""

QWEN2_WEIGHTS = (*EMBEDDINGS, *PROJECTIONS, *LLAMA_NORMS, *UNORDERED_QK)
GEMMA3_WEIGHTS = (
    *(*EMBEDDINGS, *PROJECTIONS, *UNORDERED_QK),
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
