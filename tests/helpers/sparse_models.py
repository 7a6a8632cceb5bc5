"""Models of real shapes whose weights are holes of the file: they take no disk, and no memory where they are mapped."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from borealis_gguf.checkpoint.types import GGMLQuantizationType, row_nbytes

from .families import Family

ALIGNMENT = 32
T = GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """A model's dimensions; `untied` has an output matrix of its own."""

    name: str
    architecture: str
    layers: int
    width: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int = 32768
    window: int | None = None
    untied: bool = False


GEMMA_270M = Shape("270m", "gemma3", 18, 640, 2048, 4, 1, 256, 262144, window=512)
GEMMA_1B = Shape("1b", "gemma3", 26, 1152, 6912, 4, 1, 256, 262144, window=512)
GEMMA_4B = Shape("4b", "gemma3", 34, 2560, 10240, 8, 4, 256, 262208, 131072, window=1024)
GEMMA_12B = Shape("12b", "gemma3", 48, 3840, 15360, 16, 8, 256, 262208, 131072, window=1024)
GEMMA_27B = Shape("27b", "gemma3", 62, 5376, 21504, 32, 16, 128, 262208, 131072, window=1024)
MISTRAL_7B = Shape("mistral-7b", "llama", 32, 4096, 14336, 32, 8, 128, 32768, untied=True)
BLOOM_7B = Shape("bloom-7b", "bloom", 30, 4096, 16384, 32, 32, 128, 32768, 2048)
QWEN2_1B = Shape("qwen2-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936)
SHAPES = (GEMMA_270M, GEMMA_1B, GEMMA_4B, GEMMA_12B, GEMMA_27B, MISTRAL_7B, BLOOM_7B, QWEN2_1B)


def write_sparse(path: Path, shape: Shape, type: GGMLQuantizationType = T.F16) -> Path:
    """A GGUF of `shape` with matrices of `type`, vectors of F32, all zero, and no vocabulary."""
    writer = GGUFWriter(path, shape.architecture)
    _keys(writer, shape)
    kinds = {name: (dims, type if len(dims) > 1 else T.F32) for name, dims in _tensors(shape).items()}
    return _write(writer, path, kinds)


def write_sparse_checkpoint(folder: Path, family: Family) -> Path:
    """The checkpoint of `family` with tensors of BF16, all zero."""
    path = replace(family, shapes=lambda config: {}).write(folder)
    header: dict[str, object] = {}
    offset = 0
    for name, dims in family.shapes(family.config).items():
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + 2 * prod(dims)]}
        offset += 2 * prod(dims)
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


def _write(writer: GGUFWriter, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], GGMLQuantizationType]]) -> Path:
    nbytes = 0
    for name, (dims, kind) in tensors.items():
        size = row_nbytes(kind, dims[-1]) * prod(dims[:-1])
        dtype = np.dtype({T.F16: np.float16, T.F32: np.float32}.get(kind, np.uint8))
        stored = (*dims[:-1], row_nbytes(kind, dims[-1])) if dtype == np.uint8 else dims
        writer.add_tensor_info(name, stored, dtype, size, raw_dtype=kind)  # type: ignore[arg-type]
        nbytes += -(-size // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT
        file.truncate(start + nbytes)
    return path


def _keys(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.head_dim * shape.heads != shape.width or shape.architecture == "gemma3":
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_eps(1e-5) if shape.architecture == "bloom" else writer.add_layer_norm_rms_eps(1e-6)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.width)}
    tensors["output_norm.weight"] = (shape.width,)
    if shape.untied:
        tensors["output.weight"] = (shape.vocab, shape.width)
    if shape.architecture == "bloom":
        tensors |= {"token_embd_norm.weight": (shape.width,), "token_embd_norm.bias": (shape.width,)}
        tensors["output_norm.bias"] = (shape.width,)
    block = {"gemma3": _gemma3, "bloom": _bloom}.get(shape.architecture, _llama)(shape)
    return tensors | {f"blk.{bid}.{name}": dims for bid in range(shape.layers) for name, dims in block.items()}


def _llama(shape: Shape) -> dict[str, tuple[int, ...]]:
    q, kv, width, ff = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.width, shape.ff
    tensors: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,),
        "attn_q.weight": (q, width),
        "attn_k.weight": (kv, width),
        "attn_v.weight": (kv, width),
        "attn_output.weight": (width, q),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (ff, width),
        "ffn_up.weight": (ff, width),
        "ffn_down.weight": (width, ff),
    }
    if shape.architecture == "qwen2":
        tensors |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    return tensors


def _gemma3(shape: Shape) -> dict[str, tuple[int, ...]]:
    norms = {f"{name}.weight": (shape.width,) for name in ("post_attention_norm", "post_ffw_norm")}
    return _llama(shape) | norms | {f"attn_{name}_norm.weight": (shape.head_dim,) for name in "qk"}


def _bloom(shape: Shape) -> dict[str, tuple[int, ...]]:
    width, ff = shape.width, shape.ff
    rows = {"attn_norm": (), "attn_qkv": (3 * width,), "attn_output": (width,), "ffn_norm": ()}
    tensors: dict[str, tuple[int, ...]] = {f"{name}.weight": (*dims, width) for name, dims in rows.items()}
    tensors |= {f"{name}.bias": (*dims[:1],) or (width,) for name, dims in rows.items()}
    tensors |= {"ffn_up.weight": (ff, width), "ffn_up.bias": (ff,)}
    return tensors | {"ffn_down.weight": (width, ff), "ffn_down.bias": (width,)}


def write_mmproj(path: Path, side: int, layers: int, text_width: int = 2560) -> Path:
    """The side of Gemma 3 that sees, of published widths, for pictures of `side` x `side` pixels."""
    width, ff, patches = 1152, 4304, (side // 14) ** 2
    writer = GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    numbers = {"projection_dim": text_width, "image_size": side, "patch_size": 14, "embedding_length": width}
    numbers |= {"feed_forward_length": ff, "block_count": layers, "attention.head_count": 16}
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_bool("clip.use_gelu", True)
    tensors: dict[str, tuple[int, ...]] = {
        "v.patch_embd.bias": (width,),
        "v.post_ln.weight": (width,),
        "v.post_ln.bias": (width,),
        "mm.soft_emb_norm.weight": (width,),
        "mm.input_projection.weight": (width, text_width),
    }
    square, rows = (width, width), {"ln1": (width,), "ln2": (width,), "ffn_up": (ff, width), "ffn_down": (width, ff)}
    for name, dims in (rows | {f"attn_{name}": square for name in ("q", "k", "v", "out")}).items():
        for bid in range(layers):
            tensors |= {f"v.blk.{bid}.{name}.weight": dims, f"v.blk.{bid}.{name}.bias": dims[:1]}
    full = {"v.patch_embd.weight": (width, 3, 14, 14), "v.position_embd.weight": (patches, width)}
    kinds = {name: (dims, T.F16 if len(dims) > 1 else T.F32) for name, dims in tensors.items()}
    return _write(writer, path, kinds | {name: (dims, T.F32) for name, dims in full.items()})
