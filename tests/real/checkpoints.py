"""Checkpoints around real parts: a real tokenizer with small random weights, and the real 270m itself."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize

from borealis_gguf.checkpoint.gguf import read_gguf

from ..helpers import sentencepiece_models as sp
from ..helpers.checkpoints import Files, Miniature, config, pattern, write_json, write_safetensors
from ..helpers.families import Family, llama_shapes, qwen2_shapes
from ..helpers.tiny import bf16
from .material import real

SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5}
N_GEMMA = 262144

GEMMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_270M = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": pattern(18),
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": N_GEMMA,
}


def tokenizer_files(name: str) -> Files:
    """Copy a real tokenizer.json and tokenizer_config.json."""

    def copy(folder: Path) -> None:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(real(name) / file, folder / file)

    return copy


def with_tokenizer_model(folder: Path) -> None:
    """Gemma's tokenizer.json with the tokenizer.model that it was made of, rebuilt from the GGUF made from that one."""
    tokenizer_files("gemma3")(folder)
    write_tokenizer_model(folder / "tokenizer.model")


def write_tokenizer_model(path: Path) -> None:
    """The real pieces, scores and types. A user-defined piece has its spaces as ▁, which a GGUF stores as spaces."""
    header = read_gguf(real("gemma3-270m") / "gemma-3-270m-Q4_K_M.gguf")
    tokens, scores, types = (header.value(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    texts = [text.replace(" ", "▁") if type == 4 else text for text, type in zip(tokens, types, strict=True)]
    path.write_bytes(sp.model(zip(texts, scores, types, strict=True)))


def gemma(name: str, n_vocab: int, tokenizer: Files, **changes: Any) -> Miniature:
    changes = {"vocab_size": n_vocab, "eos_token_id": [1, 106], **changes}
    return Miniature(name, config(**changes), tokenizer=tokenizer)


def llama(name: str, n_vocab: int, tokenizer: str, **changes: Any) -> Family:
    shapes = qwen2_shapes if changes.get("model_type") == "qwen2" else llama_shapes
    return Family(name, LLAMA | {"vocab_size": n_vocab} | changes, tokenizer=tokenizer_files(tokenizer), shapes=shapes)


def write_real_270m(folder: Path, settings: Mapping[str, Any] = GEMMA_270M) -> Path:
    """The real Gemma 3 270m as a BF16 checkpoint. Its weights carry the rounding of the GGUF they come from."""
    folder.mkdir()
    tensors = {}
    for tensor in GGUFReader(real("gemma3-270m") / "gemma-3-270m-Q4_K_M.gguf").tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.endswith("norm.weight"):
            values = values - np.float32(1)
        tensors[_checkpoint_name(tensor.name)] = "BF16", values.shape, bf16(_nearest(values)).tobytes()
    write_safetensors(folder / "model.safetensors", dict(sorted(tensors.items())))
    write_json(folder / "config.json", dict(settings))
    tokenizer_files("gemma3")(folder)
    return folder


def _nearest(values: np.ndarray) -> np.ndarray:
    """float32 whose upper halves are the nearest BF16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1)).view(np.float32)


def _checkpoint_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, bid, part, _ = name.split(".")
    return f"model.layers.{bid}.{GEMMA_NAMES[part]}.weight"
