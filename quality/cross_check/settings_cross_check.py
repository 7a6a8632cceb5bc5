"""Compares a GGUF's metadata keys with the settings in config.json, and its special tokens with the tokenizer's."""

from typing import Any

import numpy as np

from ...checkpoint.folder import MAX_TOKENIZER_JSON, Checkpoint, read_json_object
from ...checkpoint.gguf import GGUFFile
from ...checkpoint.types import KV
from ..report import Finding, spelled
from .definition import Definition, Settings
from .transformers_settings import FLOATS

TOKEN_ROLES = {"bos_token": ("bos",), "eos_token": ("eos", "eot", "eom")}
"""Where a tokenizer ends texts with one token and its configuration names another, the latter ends a turn."""

CONTROL = 3


def check_settings(
    header: GGUFFile, definition: Definition, settings: Settings, checkpoint: Checkpoint
) -> list[Finding]:
    """Every key that the definition knows, absent ones included, the size of the vocabulary, and BOS and EOS."""
    expected = [("general.architecture", definition.architecture, "")]
    expected += [(f"{definition.prefix}.{key}", settings.get(name), name) for key, name in definition.keys.items()]
    failed = [finding for key, value, name in expected for finding in _check_key(header.find(key), key, value, name)]
    tokens = len(header.value("tokenizer.ggml.tokens", ()))
    if "vocab_size" in settings and tokens != settings["vocab_size"]:
        failed.append(Finding("failed", "tokens", "", f"{settings['vocab_size']} (vocab_size)", str(tokens)))
    failed += _check_special_tokens(header, checkpoint)
    return failed or [Finding("ok", f"{len(expected)} keys are config.json's")]


def _check_key(kv: KV | None, key: str, expected: Any, name: str) -> list[Finding]:
    """What is wrong with a key that must have the value `expected`, which transformers calls `name`."""
    value = kv.value if kv else None
    if not _same(expected, value):
        return [Finding("failed", "key", key, f"{_text(expected)}{name and f' ({name})'}", _text(value))]
    type = "STRING" if isinstance(expected, str) else "FLOAT32" if name in FLOATS else "UINT32"
    if kv and kv.type.name != type:
        return [Finding("failed", "key", key, f"the type {type}", f"the type {kv.type.name}")]
    return []


def _check_special_tokens(header: GGUFFile, checkpoint: Checkpoint) -> list[Finding]:
    """The tokens that tokenizer_config.json names have their role, if they are control tokens of tokenizer.json."""
    config_path, tokenizer = checkpoint.file("tokenizer_config.json"), checkpoint.file("tokenizer.json")
    configured = read_json_object(config_path, limit=MAX_TOKENIZER_JSON) if config_path and tokenizer else {}
    tokens, types = (header.value(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "token_type"))
    failed = []
    for name, roles in TOKEN_ROLES.items():
        text = configured.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        id = tokens.index(text) if text in tokens else -1
        ids = [header.value(f"tokenizer.ggml.{role}_token_id") for role in roles]
        if 0 <= id < len(types) and types[id] == CONTROL and id not in ids:
            key = f"tokenizer.ggml.{roles[0]}_token_id"
            failed.append(Finding("failed", "key", key, f"{id} ({name}, {spelled(str(text))})", _text(ids[0])))
    return failed


def _same(expected: Any, value: Any) -> bool:
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        return value == expected or np.float32(value) == np.float32(expected)
    return expected == value


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)[:60]
