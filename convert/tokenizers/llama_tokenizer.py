"""Converts the tokenizer of Llama, Mistral, Qwen 2 and BLOOM checkpoints: SentencePiece or byte-level BPE."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.folder import Checkpoint
from ...checkpoint.strict_json import read_json_object
from ...checkpoint.tokenizer_file import read_tokenizer_file
from ...checkpoint.types import KV
from ...checkpoint.unsupported_folder import no_tokenizer
from ...errors import InvalidInput
from ..metadata.chat_template import chat_template_kv, read_chat_template
from ..metadata.template_whitespace import Step, emulate, emulated_steps
from .added_tokens import added_tokens, declared_tokens
from .byte_level_bpe import bpe_kv, read_bpe
from .embedding_rows import embedding_rows
from .preprocessing import Preprocessing, read_preprocessing
from .sentencepiece_model import read_sentencepiece
from .sentencepiece_vocabulary import read_tokenizer, tokenizer_kv
from .special_tokens import LLAMA

log = logging.getLogger("borealis_gguf")

PREFIX = "tokenizer.ggml.add_space_prefix"


def vocabulary_kv(checkpoint: Checkpoint, n_vocab: int) -> tuple[KV, ...]:
    """Returns the tokenizer's keys for a vocabulary of `n_vocab`, in the order llama.cpp's converter writes them.

    Warns of preprocessing steps that llama.cpp's tokenizer lacks. Raises InvalidInput if llama.cpp would split all
    texts differently.
    """
    model, tokenizer_json = checkpoint.file("tokenizer.model"), checkpoint.file("tokenizer.json")
    json = read_tokenizer_file(tokenizer_json) if tokenizer_json else {}
    settings = checkpoint.file("tokenizer_config.json")
    config = read_json_object(settings) if settings else {}
    preprocessing = read_preprocessing(json)
    if model or preprocessing:
        preprocessing = preprocessing or _preprocessing_of_model(model, config)
        kv, steps = _sentencepiece_kv(checkpoint, n_vocab, preprocessing, config), ()
        unsupported = preprocessing.unsupported
    elif tokenizer_json:
        declared = declared_tokens(checkpoint, config, added_tokens(str(tokenizer_json), json))
        bpe = read_bpe(tokenizer_json, json, config, n_vocab, rows=embedding_rows(checkpoint), declared=declared)
        template, steps = emulate(read_chat_template(checkpoint, config), bpe, config), emulated_steps(bpe.match)
        keys = bpe_kv(str(checkpoint.path), bpe, json, config, checkpoint.config)
        kv, unsupported = (*_space_prefix(config), *keys, *chat_template_kv(template)), bpe.unsupported
    else:
        raise InvalidInput(f"{checkpoint.path}: {no_tokenizer(checkpoint.path)}")
    if unsupported:
        _warn_unsupported(str(tokenizer_json or model), unsupported, steps)
    return kv


def _space_prefix(config: Mapping[str, Any]) -> tuple[KV, ...]:
    """Returns the key for add_prefix_space of tokenizer_config.json, which llama.cpp's converter writes first."""
    value = config.get("add_prefix_space")
    return (KV(PREFIX, GGUFValueType.BOOL, value),) if isinstance(value, bool) else ()


def _preprocessing_of_model(path: Path | None, config: Mapping[str, Any]) -> Preprocessing:
    """Reads the preprocessing without tokenizer.json: add_prefix_space of tokenizer_config.json, else of the model."""
    model = read_sentencepiece(path) if path else None
    configured = next((kv.value for kv in _space_prefix(config)), None)
    unsupported = ["letters replaced"] * (model is not None and model.maps)
    unsupported += ["of several spaces one"] * (model is not None and model.joins_spaces)
    return Preprocessing(bool(model and model.prefix) if configured is None else configured, tuple(unsupported))


def _sentencepiece_kv(
    checkpoint: Checkpoint, n_vocab: int, preprocessing: Preprocessing, config: Mapping[str, Any]
) -> tuple[KV, ...]:
    """Returns the keys of a SentencePiece vocabulary, with add_space_prefix = false where the tokenizer adds no space.

    llama.cpp adds one by default, and its converter reads tokenizer_config.json only, so its ids are often wrong."""
    kv = tokenizer_kv(read_tokenizer(checkpoint, n_vocab, plain=False), checkpoint.config, LLAMA)
    written = tuple(replace(entry, value=preprocessing.prefix) for entry in _space_prefix(config))
    if written != _space_prefix(config):
        log.warning(
            "%s: add_prefix_space is %s, but tokenizer.json does otherwise, and is followed",
            checkpoint.path / "tokenizer_config.json",
            str(not preprocessing.prefix).lower(),
        )
    added = () if written or preprocessing.prefix else (KV(PREFIX, GGUFValueType.BOOL, False),)
    return (*written, *kv, *added)


def _warn_unsupported(where: str, unsupported: Sequence[str], steps: Sequence[Step]) -> None:
    """Warns of steps that a GGUF cannot express, and names the ones that the chat template emulates."""
    in_chats = f"; in chats the template does {', '.join(step.name for step in steps)}" if steps else ""
    effect = "texts that it changes get other token ids, which the check counts"
    log.warning("%s: a GGUF cannot express %s: %s%s", where, "; ".join(unsupported), effect, in_chats)
