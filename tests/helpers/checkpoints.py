"""Miniature checkpoints: every Borealis size in shape, a few million weights each, the same bytes on every machine."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .paths import NANO
from .sentencepiece_models import write_large_model
from .tiny import bf16, weights

N_NANO = 4096
"""Tokens of nano-nb-7m, whose tokenizer most miniatures share."""

CHAT = """{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}"""
README = """---
license: gemma
license_link: https://ai.google.dev/gemma/terms
library_name: transformers
pipeline_tag: text-generation
language:
- no
- nb
- nn
- sv
tags:
- borealis
- norwegian
base_model:
- google/gemma-3-4b-it
- https://huggingface.co/NbAiLab/borealis-1b-v2
- https://example.org/some/model
datasets:
- NbAiLab/aurora-sft-2512
model_creator: Nasjonalbiblioteket
model_description: A miniature for tests, æøå.
version: v1.1
---
# Borealis

The rest is prose.
"""

Files = Callable[[Path], None]


def nano_tokenizer(*names: str) -> Files:
    """Copy these files of nano-nb-7m."""

    def copy(folder: Path) -> None:
        for name in names:
            shutil.copyfile(NANO / name, folder / name)

    return copy


BOTH = nano_tokenizer("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
MODEL_ONLY = nano_tokenizer("tokenizer.model", "tokenizer_config.json")
JSON_ONLY = nano_tokenizer("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Miniature:
    """One checkpoint: `config` is config.json, `wrap` puts a text tensor's name where this layout has it.

    `vision` are the prefixes of the vision tower and of the projector, None for a model that cannot see.
    """

    name: str
    config: dict[str, Any]
    dtype: str = "BF16"
    shards: int = 1
    tokenizer: Files = BOTH
    wrap: tuple[str, str] = ("model.", "lm_head")
    vision: tuple[str, str] | None = None
    head: str | None = None
    scale: float = 1.0
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> dict[str, Any]:
        return self.config.get("text_config", self.config)

    def write(self, folder: Path) -> Path:
        """Write the checkpoint to a folder of its own name inside `folder`."""
        path = folder / self.name
        path.mkdir()
        write_json(path / "config.json", self.config)
        self.tokenizer(path)
        for name, content in self.files.items():
            (path / name).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (path / name).write_text(content, encoding="utf-8", newline="")
            else:
                write_json(path / name, content)
        write_shards(path, self.tensors(), self.shards)
        return path

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """name -> (dtype, shape, bytes)."""
        model, head = self.wrap
        shapes = {model + name: shape for name, shape in text_shapes(self.text).items()}
        if self.head:
            shapes[f"{head}.weight"] = shapes[f"{model}embed_tokens.weight"]
        tensors = {name: (self.dtype, shape, self.bytes(name, shape)) for name, shape in shapes.items()}
        if self.vision is not None:  # the same bytes in every layout
            for name, shape in vision_shapes(self.config).items():
                tower, projector = (name.replace(*pair) for pair in zip(PLAIN, self.vision, strict=True))
                tensors[tower if name.startswith(PLAIN[0]) else projector] = self.dtype, shape, self.bytes(name, shape)
        if self.head == "tied":
            tensors[f"{head}.weight"] = tensors[f"{model}embed_tokens.weight"]
        return tensors

    def bytes(self, name: str, shape: tuple[int, ...]) -> bytes:
        values = weights(sum(name.encode()) * 1000 + len(name), *shape) * np.float32(self.scale)
        return {"BF16": bf16(values), "F16": values.astype(np.float16), "F32": values}[self.dtype].tobytes()


PLAIN = ("vision_tower.vision_model.", "multi_modal_projector.")
"""How transformers 4 lays a vision side out: the one way llama.cpp's converter is sure to see."""

LAYOUTS = (
    ("model.vision_tower.vision_model.", "model.multi_modal_projector."),
    ("vision_tower.", "multi_modal_projector."),
    ("model.vision_tower.", "model.multi_modal_projector."),
    ("vision_model.", "multimodal_projector."),
    ("model.vision_model.", "model.multimodal_projector."),
    ("language_model.vision_tower.vision_model.", "language_model.multi_modal_projector."),
    ("model.language_model.vision_tower.", "model.language_model.multi_modal_projector."),
)
"""Every other way."""


def vision_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Gemma 3 vision side, in the plain layout."""
    vision, text = config["vision_config"], config["text_config"]
    hidden, ff = vision["hidden_size"], vision["intermediate_size"]
    image, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    layer = {"layer_norm1": (hidden,), "layer_norm2": (hidden,), "mlp.fc1": (ff, hidden), "mlp.fc2": (hidden, ff)}
    layer |= {f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    modules = {"embeddings.patch_embedding": (hidden, 3, patch, patch), "post_layernorm": (hidden,)}
    for i in range(vision["num_hidden_layers"]):
        modules |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes = {f"{PLAIN[0]}{name}.weight": shape for name, shape in modules.items()}
    shapes |= {f"{PLAIN[0]}{name}.bias": shape[:1] for name, shape in modules.items()}
    if vision.get("vision_use_head", True):
        shapes |= {f"{PLAIN[0]}head.probe": (1, 1, hidden), f"{PLAIN[0]}head.mlp.fc1.weight": (ff, hidden)}
        shapes |= {f"{PLAIN[0]}head.attention.in_proj_{kind}": (3 * hidden,) for kind in ("weight", "bias")}
    return shapes | {
        f"{PLAIN[0]}embeddings.position_embedding.weight": ((image // patch) ** 2, hidden),
        f"{PLAIN[1]}mm_input_projection_weight": (hidden, text["hidden_size"]),
        f"{PLAIN[1]}mm_soft_emb_norm.weight": (hidden,),
    }


def text_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Gemma 3 text model, under `model.`."""
    hidden, ff, vocabulary = text["hidden_size"], text["intermediate_size"], text.get("vocab_size", 262208)
    head_dim = text.get("head_dim", 256)
    q, kv = text.get("num_attention_heads", 8) * head_dim, text.get("num_key_value_heads", 4) * head_dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "post_attention_layernorm": (hidden,),
        "pre_feedforward_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
        "mlp.gate_proj": (ff, hidden),
        "mlp.up_proj": (ff, hidden),
        "mlp.down_proj": (hidden, ff),
    }
    shapes = {"embed_tokens.weight": (vocabulary, hidden), "norm.weight": (hidden,)}
    for i in range(text["num_hidden_layers"]):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8", newline="")


def write_shards(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], shards: int) -> None:
    """One safetensors file, or several and an index, with about as many tensors in each."""
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(path / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(data) for _, _, data in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        assert len(data) == prod(shape) * {"BF16": 2, "F16": 2, "F32": 4}.get(dtype, len(data) // prod(shape))
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def config(**changes: Any) -> dict[str, Any]:
    """A small text configuration in the v4 dialect; None removes a key."""
    base = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        "vocab_size": N_NANO,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


VISION = {
    "hidden_size": 32,
    "image_size": 56,
    "intermediate_size": 48,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "vision_use_head": False,
}
"""4 × 4 patches."""


def preparation(image_size: int, tokens: int, **changes: Any) -> dict[str, Any]:
    """preprocessor_config.json, as Gemma 3's has it."""
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": image_size, "width": image_size},
        **changes,
    }


def wrapped(text: dict[str, Any], vision: dict[str, Any] = VISION, **top: Any) -> dict[str, Any]:
    """A configuration of the kind with vision; an image takes four tokens unless `top` says otherwise."""
    text = {key: value for key, value in text.items() if key != "architectures" and not key.endswith("_token_id")}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        **top,
    }


def pattern(layers: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]


def image_token(folder: Path) -> None:
    """nano's tokenizer with `<image_soft_token>` after its last piece, as the sizes with vision have it."""
    nano_tokenizer("tokenizer.model", "chat_template.jinja", "special_tokens_map.json")(folder)
    token = {"id": N_NANO, "content": "<image_soft_token>", "special": True, "normalized": False}
    whole = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    whole["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    write_json(folder / "tokenizer.json", whole)
    settings = json.loads((NANO / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"][str(N_NANO)] = {k: v for k, v in token.items() if k != "id"}
    settings["chat_template"] = CHAT
    write_json(folder / "tokenizer_config.json", settings)


def large_tokenizer(folder: Path) -> None:
    """262144 pieces, and `<image_soft_token>` after them in added_tokens.json, as 4b has it."""
    n = 262144
    specials = write_large_model(folder / "tokenizer.model", n)
    decoder = {str(id): {"content": text, "special": text.startswith("<")} for id, text in specials.items()}
    decoder[str(n)] = {"content": "<image_soft_token>", "special": True}
    names = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
    write_json(folder / "added_tokens.json", {"<image_soft_token>": n})
    switches = {"add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": decoder}
    write_json(folder / "tokenizer_config.json", names | switches)


V5_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
SAMPLING = {"do_sample": True, "top_k": 64, "top_p": 0.95, "temperature": 0.7, "repetition_penalty": 1.05}

MINIATURES = (
    Miniature(
        "borealis-270m-mini",
        config(
            hidden_size=640,
            intermediate_size=256,
            num_hidden_layers=2,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            layer_types=pattern(2),
            _sliding_window_pattern=6,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            rope_scaling=None,
            use_bidirectional_attention=False,
        ),
        files={"README.md": README, "generation_config.json": SAMPLING},
    ),
    Miniature(
        "Borealis-1b-Instruct-v1.1",
        config(
            hidden_size=1152,
            intermediate_size=288,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window_pattern=6,
            eos_token_id=[1, 5],
            rope_theta=1000000,
            rope_local_base_freq=10000,
            _name_or_path="NbAiLab/borealis-1b-base",
        ),
        tokenizer=nano_tokenizer("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
        files={"generation_config.json": {"eos_token_id": [1, 5], "top_k": None}},
    ),
    Miniature(
        "borealis-4b-mini",
        wrapped(
            config(
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=2,
                head_dim=64,
                query_pre_attn_scalar=64,
                sliding_window=1024,
                vocab_size=N_NANO + 64,
                max_position_embeddings=None,
                rope_scaling={"factor": 8.0, "rope_type": "linear"},
            ),
            VISION | {"num_hidden_layers": 11},
            eos_token_id=[1, 5],
            image_token_index=N_NANO,
        ),
        shards=2,
        tokenizer=image_token,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=PLAIN,
        files={"README.md": "# No block\n", "preprocessor_config.json": preparation(56, 4)},
    ),
    Miniature(
        "borealis-12b-mini",
        wrapped(
            config(
                hidden_size=128,
                num_hidden_layers=12,
                vocab_size=N_NANO + 64,
                rope_parameters=V5_ROPE,
                layer_types=pattern(12),
                sliding_window=1024,
            ),
            VISION | {"image_size": 112, "vision_use_head": True},
            bos_token_id=2,
            eos_token_id=1,
        ),
        dtype="F32",
        shards=3,
        tokenizer=image_token,
        wrap=("model.language_model.", "lm_head"),
        vision=LAYOUTS[0],
        files={
            "chat_template.json": {"chat_template": "not this one"},
            "processor_config.json": {
                "image_processor": preparation(112, 4, image_std=[0.25, 0.5, 1.0]),
                "image_seq_length": 4,
                "processor_class": "Gemma3Processor",
            },
        },
    ),
    Miniature(
        "borealis-27b-mini",
        wrapped(
            config(
                hidden_size=336,
                intermediate_size=64,
                num_hidden_layers=62,
                num_attention_heads=2,
                num_key_value_heads=1,
                query_pre_attn_scalar=168,
                vocab_size=N_NANO + 64,
                rope_scaling={"factor": 8.0, "rope_type": "linear"},
            ),
        ),
        shards=4,
        tokenizer=image_token,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=LAYOUTS[1],
        files={
            "preprocessor_config.json": preparation(56, 4, image_mean=[0.0, 0.25, 0.5]),
            "processor_config.json": {"image_seq_length": 4, "image_mean": [0.125, 0.25, 0.5]},
        },
    ),
    Miniature(
        "gemma-3-4b-sparse",
        wrapped(
            {
                "hidden_size": 32,
                "intermediate_size": 64,
                "model_type": "gemma3_text",
                "num_hidden_layers": 1,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            {"hidden_size": 48, "intermediate_size": 4304, "num_hidden_layers": 2},
            boi_token_index=255999,
            eoi_token_index=256000,
            eos_token_id=1,
            bos_token_id=2,
            pad_token_id=0,
            image_token_index=262144,
            mm_tokens_per_image=49,
        ),
        tokenizer=large_tokenizer,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=PLAIN,
        files={"chat_template.json": {"chat_template": CHAT}, "preprocessor_config.json": preparation(224, 49)},
    ),
    Miniature(
        "untied-f16",
        config(tie_word_embeddings=False, num_hidden_layers=11, intermediate_size=80),
        dtype="F16",
        head="untied",
        tokenizer=MODEL_ONLY,
        files={
            "chat_template.jinja": CHAT,
            "additional_chat_templates/tool use.jinja": "{{ tools }}",
        },
    ),
    Miniature(
        "seeing-f16",
        wrapped(config(num_hidden_layers=1, vocab_size=N_NANO + 64)),
        dtype="F16",
        tokenizer=image_token,
        wrap=("model.language_model.", "lm_head"),
        vision=LAYOUTS[4],
        files={"preprocessor_config.json": preparation(56, 4)},
    ),
    Miniature(
        "full-attention-yarn",
        config(
            sliding_window_pattern=1,
            final_logit_softcapping=30.0,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8192,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
        dtype="F32",
    ),
)
"""Those that llama.cpp's converter must agree with, entry by entry and byte by byte."""

TIED_HEAD = Miniature("stored-tied-head", config(), head="tied")
"""llama.cpp keeps an lm_head that repeats the embedding; here it is dropped."""
