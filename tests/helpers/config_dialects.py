"""Checkpoints as each version of transformers saves them: its small files are data, the weights a miniature's."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from borealis_gguf.convert.tokenizers.sentencepiece_model import read_sentencepiece

from . import sentencepiece_models as sp
from .checkpoints import (
    N_NANO,
    NANO,
    PLAIN,
    SAMPLING,
    Miniature,
    config,
    image_token,
    nano_tokenizer,
    preparation,
    wrapped,
    write_json,
    write_safetensors,
)
from .families import FAMILIES
from .paths import DATA

DATA = DATA / "config_dialects"
VERSIONS = ("4.51.3", "4.55.4", "4.57.6", "5.0.0", "5.4.0", "5.5.4", "5.15.1", "5.24.0")
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
MASK = 10
"""The id of `<unused0>` in nano-nb-7m, which is `<mask>` here: transformers 5 adds that to a Gemma without it."""
IMAGE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def with_mask(folder: Path) -> None:
    """nano-nb-7m's tokenizer with `<mask>`, as Gemma's has it."""
    nano_tokenizer("chat_template.jinja", "special_tokens_map.json")(folder)
    _name_mask(folder)


def with_mask_and_image(folder: Path) -> None:
    """The same with `<image_soft_token>`, and the names that Gemma 3's processor looks for."""
    image_token(folder)
    _name_mask(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    settings |= {**IMAGE, "extra_special_tokens": IMAGE, "processor_class": "Gemma3Processor"}
    write_json(folder / "tokenizer_config.json", settings)


def _name_mask(folder: Path) -> None:
    model = read_sentencepiece(NANO / "tokenizer.model")
    pieces = ["<mask>" if id == MASK else piece for id, piece in enumerate(model.pieces)]
    (folder / "tokenizer.model").write_bytes(sp.model(zip(pieces, model.scores, model.types, strict=True)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name if (folder / name).exists() else NANO / name
        text = path.read_text(encoding="utf-8").replace('"<unused0>"', '"<mask>"')
        (folder / name).write_text(text, encoding="utf-8", newline="")


LAYERS = {"num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
"""One layer more than the pattern of Gemma's layers."""

BASES: tuple[Miniature, ...] = (
    Miniature("gemma3-text", config(**LAYERS), tokenizer=with_mask, files={"generation_config.json": SAMPLING}),
    Miniature(
        "gemma3-vision",
        wrapped(
            config(**LAYERS, vocab_size=N_NANO + 64, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
            bos_token_id=2,
            eos_token_id=[1, 5],
            pad_token_id=0,
            boi_token_index=6,
            eoi_token_index=7,
            image_token_index=N_NANO,
        ),
        tokenizer=with_mask_and_image,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=PLAIN,
        files={
            "generation_config.json": SAMPLING,
            "preprocessor_config.json": preparation(56, 4),
            "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
        },
    ),
    *(
        family
        for family in FAMILIES
        if family.name
        in (
            "normistral-7b-warm-instruct-mini",
            "normistral-7b-warm-instruct-nora",
            "llama-biased-mini",
            "qwen2-mini",
            "norbloom-7b-scratch-mini",
        )
    ),
)


def write(base: Miniature, version: str, folder: Path) -> Path:
    """The checkpoint `base`, which lies in `folder`, as `version` of transformers saves it."""
    original = folder / base.name
    vocabulary = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    path = folder / version / base.name
    path.mkdir(parents=True)
    for name in SMALL:
        content = saved(base.name, version, name)
        if name == "tokenizer.json":
            content["model"] |= {key: vocabulary[key] for key in ("vocab", "merges")}
        if name.endswith(".json") and content is not None:
            write_json(path / name, content)
        elif content is not None:
            (path / name).write_text(content, encoding="utf-8", newline="")
    if "vision_config" in base.config and not list(path.glob("*processor_config.json")):  # 5.4 needs torchvision for it
        shutil.copy(original / "preprocessor_config.json", path)
    if saved(base.name, version, "tokenizer.model"):
        shutil.copy(original / "tokenizer.model", path)
    names, left_out = saved(base.name, version, "names"), saved(base.name, version, "left out")
    tensors = {names.get(name, name): t for name, t in base.tensors().items() if name not in left_out}
    write_safetensors(path / "model.safetensors", tensors)
    return path


def saved(name: str, version: str, file: str) -> Any:
    """What `version` writes in `file`; None where it writes none."""
    rows = json.loads(_data(name)).get(file, [])
    return next((row["content"] for row in rows if version in row["versions"]), None)


@cache
def _data(name: str) -> str:
    return (DATA / f"{name}.json").read_text(encoding="utf-8")
