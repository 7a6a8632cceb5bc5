"""Checkpoints of the five Borealis shapes for measurements: random or sparse weights, Gemma's real tokenizer.

Where `python -m tests.real.material` has not fetched that, one of the same size is made up, which is a little faster.

python benchmarks/shapes.py 4b FOLDER --layers 6            random BF16 weights
python benchmarks/shapes.py 27b FOLDER --sparse             holes: 54 GB that take no room on most file systems
"""

import argparse
import json
import os
import shutil
import struct
from math import prod
from pathlib import Path

import numpy as np

from borealis_gguf.convert.architectures.gemma3 import ROWS
from borealis_gguf.convert.architectures.gemma3_config import read_config

TOKENS = 262144
SIZES = {
    "270m": (18, 640, 2048, 4, 1, 256, 32768, 512),
    "1b": (26, 1152, 6912, 4, 1, 256, 32768, 512),
    "4b": (34, 2560, 10240, 8, 4, 256, 131072, 1024),
    "12b": (48, 3840, 15360, 16, 8, 256, 131072, 1024),
    "27b": (62, 5376, 21504, 32, 16, 128, 131072, 1024),
}
"""layers, hidden, feed-forward, heads, kv heads, head_dim, context, sliding window"""

REAL = Path(os.environ.get("BOREALIS_GGUF_REAL_MODELS") or Path.home() / ".cache" / "borealis-gguf-tests") / "gemma3"
SHARD_BYTES = 5_000_000_000


def config_of(size: str, layers: int | None = None) -> dict[str, object]:
    """The config.json of a Borealis size, with `layers` blocks (all of them by default)."""
    depth, hidden, feed_forward, heads, kv_heads, head_dim, context, window = SIZES[size]
    sees = size not in ("270m", "1b")
    depth = layers or depth
    text: dict[str, object] = {
        "model_type": "gemma3_text",
        "num_hidden_layers": depth,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": TOKENS + 64 * sees,
        "max_position_embeddings": context,
        "sliding_window": window,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 168 if depth == 62 else head_dim,
    }
    if not sees:
        return {"architectures": ["Gemma3ForCausalLM"], **text}
    return {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}


def tensor_shapes(config: dict[str, object], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape, sorted by name as in a shard."""
    read = read_config("config.json", config)
    sizes = read.sizes()
    shapes = {
        prefix + row.source.replace("{bid}", str(bid)): tuple(sizes[axis] for axis in row.shape)
        for row in ROWS
        if row.required
        for bid in range(read.layers if "{bid}" in row.source else 1)
    }
    return dict(sorted(shapes.items()))


def write_checkpoint(folder: Path, size: str, layers: int | None = None, *, sparse: bool = False) -> None:
    """Write config, tokenizer and weights of `size` with `layers` blocks (all of them by default)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(size, layers)
    _write_json(folder / "config.json", config)
    if (REAL / "tokenizer.json").exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(REAL / name, folder / name)
    else:
        write_tokenizer(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensor_shapes(config, "language_model." if "text_config" in config else "").items():
        if shards[-1] and sum(map(_nbytes, shards[-1].values())) + _nbytes(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    noise = _noise()
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shapes, None if sparse else noise)
        weight_map |= dict.fromkeys(shapes, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * prod(shape)


def _noise() -> np.ndarray:
    """16 million weights of a plausible spread, as BF16 bits: tensors take them again and again, shifted."""
    values = np.random.default_rng(7).standard_normal(1 << 24, dtype=np.float32) * 0.02
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: np.ndarray | None) -> None:
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + _nbytes(shape)]}
        offset += _nbytes(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if noise is None:
            file.truncate(8 + len(text) + offset)
            return
        for seed, shape in enumerate(shapes.values()):
            left, start = prod(shape), seed * 999_983 % noise.size
            while left:
                part = noise[start : start + left]
                file.write(part.tobytes())
                left, start = left - part.size, 0


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece model of 262144 pieces: special ones, bytes, letters, and numbered words; and its tokenizer.json.

    That has half a million merges, two for nearly every word: `▁ord12 3` and `▁ord1 23`. Gemma's has as many.
    """
    fixed = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2), ("<start_of_turn>", 4), ("<end_of_turn>", 4)]
    pieces = fixed + [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [("▁", 1), *((chr(c), 1) for c in (*range(33, 127), *map(ord, "æøåÆØÅ")))]
    pieces += [(text, 1) for text in ("▁o", "▁or", "▁ord", *(f"{n:02}" for n in range(100)))]
    pieces += [(f"▁ord{n}", 1) for n in range(TOKENS - len(pieces))]
    body = b"".join(_piece(text, -float(n), kind) for n, (text, kind) in enumerate(pieces))
    trainer = b"\x18\x02" + b"\x98\x02\x01"  # model_type (3) BPE, byte_fallback (35)
    normalizer = b"\x18\x00"  # add_dummy_prefix (3) false
    specs = b"\x12" + bytes([len(trainer)]) + trainer + b"\x1a" + bytes([len(normalizer)]) + normalizer
    (folder / "tokenizer.model").write_bytes(body + specs)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": text, **flags, "special": True} for n, (text, _) in enumerate(fixed)]
    _write_json(folder / "tokenizer.json", _fast_tokenizer({text: n for n, (text, _) in enumerate(pieces)}, added))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    decoder = {str(token["id"]): token for token in added}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "GemmaTokenizer", **names, "added_tokens_decoder": decoder},
    )


def _fast_tokenizer(vocabulary: dict[str, int], added: list[dict[str, object]]) -> dict[str, object]:
    """The document of a tokenizer.json that gives the ids of the SentencePiece model."""
    merges = [
        [text[:cut], text[cut:]]
        for text in vocabulary
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
    }
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "post_processor": template,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


def _piece(text: str, score: float, kind: int) -> bytes:
    """A SentencePiece message in protobuf's wire format: piece (1), score (2), type (3)."""
    data = text.encode()
    body = b"\x0a" + bytes([len(data)]) + data + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--sparse", action="store_true")
    args = parser.parse_args()
    write_checkpoint(args.folder, args.size, args.layers, sparse=args.sparse)


if __name__ == "__main__":
    main()
