"""PEFT adapters for the miniature below: the same bytes on every machine."""

import json
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from .checkpoints import NANO, Miniature, config, text_shapes
from .families import Family
from .tiny import bf16, weights

LAYERS = 2
VALUES = {"F32": np.float32, "F16": np.float16}


def base(dtype: str) -> Miniature:
    """A checkpoint that is small enough for its merged weights to be compared number by number."""
    small = config(num_hidden_layers=LAYERS, layer_types=["sliding_attention"] * LAYERS, rope_theta=1e6)
    return Miniature(f"lora-base-{dtype.lower()}", small, dtype=dtype)


SHAPES = text_shapes(base("F32").config)
"""Of the base's tensors, under `model.`."""

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """One adapter: `settings` go to adapter_config.json; `ranks` are by the module's last name, `saved` whole."""

    name: str
    settings: dict[str, Any]
    ranks: dict[str, int]
    dtype: str = "F32"
    saved: tuple[str, ...] = ()
    prefix: str = "base_model.model.model."
    readme: str | None = None
    extra: dict[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.mkdir()
        settings = {"peft_type": "LORA", "target_modules": sorted(self.ranks), "task_type": "CAUSAL_LM"}
        settings |= {"r": 4, "lora_alpha": 8, "base_model_name_or_path": "NbAiLab/borealis-4b"} | self.settings
        (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        if self.readme is not None:
            (path / "README.md").write_text(self.readme, encoding="utf-8", newline="")
        write_unsorted(path / "adapter_model.safetensors", self.tensors() | self.extra)
        return path

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        found = {}
        for name, shape in self.shapes.items():
            module = name.removesuffix(".weight")
            last = module.rpartition(".")[2]
            if last in self.ranks:
                r = self.ranks[last]
                if last == "embed_tokens":
                    found[f"{module}.lora_embedding_A"] = (r, shape[0])
                    found[f"{module}.lora_embedding_B"] = (shape[1], r)
                else:
                    found[f"{module}.lora_A.weight"] = (r, shape[1])
                    found[f"{module}.lora_B.weight"] = (shape[0], r)
            if last in self.saved:  # beside LoRA's matrices, PEFT calls the weight itself the base layer's
                found[f"{module}.base_layer.weight" if last in self.ranks else name] = shape
        return {self.prefix + name: (self.dtype, shape, self.bytes(name, shape)) for name, shape in found.items()}

    def bytes(self, name: str, shape: tuple[int, ...]) -> bytes:
        values = weights(sum((self.name + name).encode()) * 1000 + len(name), prod(shape) + 4)[: prod(shape)]
        return (bf16(values) if self.dtype == "BF16" else values.astype(VALUES[self.dtype])).tobytes()


def write_unsorted(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A file whose tensors stand in the order given, and whose header lists them in another."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(dict(sorted(entries.items(), reverse=True))).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


CARD = """---
base_model: NbAiLab/borealis-4b
library_name: peft
license: gemma
tags:
- base_model:adapter:NbAiLab/borealis-4b
- lora
---
# Safety
"""

PLAIN = Lora("borealis-4b-safety-lora-v1.2", {}, dict.fromkeys(ALL_LINEAR, 4), readme=CARD)
PATTERNS = Lora(
    "patterns",
    {
        "r": 5,
        "lora_alpha": 7,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 2, "(q|v)_proj": 3},
        "alpha_pattern": {
            r"layers\.[0]\..*(k|v)_proj": 5,
            "^model.layers.0.self_attn.q_proj": 9,
            "model.layers.1.mlp.up_proj": 32,
        },
        "modules_to_save": ["post_attention_layernorm"],
    },
    dict.fromkeys(ALL_LINEAR, 5) | {"down_proj": 2, "v_proj": 3, "q_proj": 3},
    dtype="BF16",
    saved=("post_attention_layernorm",),
)
EMBEDDING = Lora(
    "embedding", {"fan_in_fan_out": True}, {"embed_tokens": 4, "k_proj": 4}, dtype="F16", saved=("embed_tokens",)
)
FAN_IN = Lora("fan-in", {"fan_in_fan_out": True}, dict.fromkeys(("q_proj", "o_proj", "up_proj", "down_proj"), 4))
"""None of these matrices is square, and none is stored as [in, out]: PEFT turns the switch off, with a warning."""

WITHOUT_CARD = Lora("Borealis-norsk-7B", {"lora_alpha": 3}, {"v_proj": 4, "down_proj": 4}, dtype="BF16")

FOR_NANO = Lora(
    "for-nano",
    {},
    dict.fromkeys(ALL_LINEAR, 4),
    shapes=text_shapes(json.loads((NANO / "config.json").read_text(encoding="utf-8"))),
)

MERGES: dict[str, tuple[tuple[Lora, float], ...]] = {
    "plain": ((PLAIN, 1.0),),
    "quarter": ((PLAIN, 0.25),),
    "patterns": ((PATTERNS, 1.0),),
    "embedding": ((EMBEDDING, 0.5),),
    "two": ((PLAIN, 0.25), (WITHOUT_CARD, -1.5)),
    "fan-in": ((FAN_IN, 0.5),),
}
"""What PEFT merges, and how each adapter is scaled."""

CONV1D = Family(
    "gpt2-lora-base",
    {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2}
    | {"n_positions": 32, "vocab_size": 100},
    dtype="F32",
    tokenizer=lambda folder: None,
    shapes=lambda config: {
        "transformer.wte.weight": (100, 64),
        "transformer.wpe.weight": (32, 64),
        "transformer.h.0.attn.c_attn.weight": (64, 192),
        "transformer.h.0.attn.c_proj.weight": (64, 64),
        "transformer.h.0.mlp.c_fc.weight": (64, 256),
        "transformer.h.0.mlp.c_proj.weight": (256, 64),
    },
)
"""A kind of model that stores matrices as [in, out]. It cannot be converted, but adapters are merged before that."""

IN_OUT = Lora(
    "in-out",
    {"fan_in_fan_out": True},
    {"c_attn": 4, "c_fc": 4},
    prefix="base_model.model.",
    shapes={name: shape[::-1] for name, shape in CONV1D.shapes(CONV1D.config).items()},
)

FILES = (PLAIN, WITHOUT_CARD)
"""Those that llama.cpp's converter writes as it should."""

FAMILY_FILES = (
    "normistral-7b-warm-mini",
    "norbloom-7b-scratch-mini",
    "qwen2-mini",
    "normistral-11b-mini",
    "normistral-7b-warm-instruct-mini",
    "normistral-7b-warm-instruct-nora",
)
LINEAR_NAMES = (*ALL_LINEAR, "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def lora_of(family: Family, dtype: str = "F32") -> Lora:
    """An adapter of all matrices in the layers of `family`."""
    shapes = {name: shape for name, shape in family.shapes(family.config).items() if name.endswith(".weight")}
    ranks: dict[str, int] = dict.fromkeys(LINEAR_NAMES, 4)
    return Lora(f"{family.name}-lora", {}, ranks, dtype, prefix="base_model.model.", shapes=shapes)


def write_adapter(path: Path, tensors: dict[str, tuple[int, ...]], kind: str = "adapter", arch: str = "gemma3") -> Path:
    """A GGUF that says it is an adapter, with matrices of ones."""
    writer = GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
