"""The tokenizer of a Llama-like model: SentencePiece or byte-level BPE, whichever the checkpoint has."""

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
    """The tokenizer's keys for a model of `n_vocab` embeddings, in the order llama.cpp's converter writes them.

    Logs a warning that lists preprocessing steps which llama.cpp's tokenizer does not have. Raises InvalidInput where
    words would be split otherwise throughout.
    """
    model, whole = checkpoint.file("tokenizer.model"), checkpoint.file("tokenizer.json")
    json = read_tokenizer_file(whole) if whole else {}
    settings = checkpoint.file("tokenizer_config.json")
    config = read_json_object(settings) if settings else {}
    preprocessing = read_preprocessing(json)
    if model or preprocessing:
        preprocessing = preprocessing or _preprocessing_of_model(model, config)
        kv, steps = _sentencepiece(checkpoint, n_vocab, preprocessing, config), ()
        unsupported = preprocessing.unsupported
    elif whole:
        declared = declared_tokens(checkpoint, config, added_tokens(str(whole), json))
        bpe = read_bpe(whole, json, config, n_vocab, rows=embedding_rows(checkpoint), declared=declared)
        template, steps = emulate(read_chat_template(checkpoint, config), bpe, config), emulated_steps(bpe.match)
        keys = bpe_kv(str(checkpoint.path), bpe, json, config, checkpoint.config)
        kv, unsupported = (*_space_prefix(config), *keys, *chat_template_kv(template)), bpe.unsupported
    else:
        raise InvalidInput(f"{checkpoint.path}: {no_tokenizer(checkpoint.path)}")
    if unsupported:
        _warn(str(whole or model), unsupported, steps)
    return kv


def _space_prefix(config: Mapping[str, Any]) -> tuple[KV, ...]:
    """What tokenizer_config.json says of a space in front: llama.cpp's converter hands it on, before all else."""
    value = config.get("add_prefix_space")
    return (KV(PREFIX, GGUFValueType.BOOL, value),) if isinstance(value, bool) else ()


def _preprocessing_of_model(path: Path | None, config: Mapping[str, Any]) -> Preprocessing:
    """Without a tokenizer.json, tokenizer_config.json says whether a space is put in front, else the model does."""
    model = read_sentencepiece(path) if path else None
    configured = next((kv.value for kv in _space_prefix(config)), None)
    unsupported = ["letters replaced"] * (model is not None and model.maps)
    unsupported += ["of several spaces one"] * (model is not None and model.joins_spaces)
    return Preprocessing(bool(model and model.prefix) if configured is None else configured, tuple(unsupported))


def _sentencepiece(
    checkpoint: Checkpoint, n_vocab: int, preprocessing: Preprocessing, config: Mapping[str, Any]
) -> tuple[KV, ...]:
    """The keys of a SentencePiece vocabulary. The runtime puts a space in front unless a key says no. (llama.cpp's
    converter asks tokenizer_config.json alone, so for most models that take none its ids are wrong.)"""
    kv = tokenizer_kv(read_tokenizer(checkpoint, n_vocab, plain=False), checkpoint.config, LLAMA)
    written = tuple(replace(entry, value=preprocessing.prefix) for entry in _space_prefix(config))
    if written != _space_prefix(config):
        log.warning(
            "%s: add_prefix_space is %s, but tokenizer.json does otherwise, and is followed",
            checkpoint.path / "tokenizer_config.json",
            str(not preprocessing.prefix).lower(),
        )
    last = () if written or preprocessing.prefix else (KV(PREFIX, GGUFValueType.BOOL, False),)
    return (*written, *kv, *last)


def _warn(where: str, unsupported: Sequence[str], steps: Sequence[Step]) -> None:
    """Log the steps that a GGUF cannot express, and which of them the chat template does instead."""
    in_chats = f"; in chats the template does {', '.join(step.name for step in steps)}" if steps else ""
    effect = "texts that it changes get other token ids, which the check counts"
    log.warning("%s: a GGUF cannot express %s: %s%s", where, "; ".join(unsupported), effect, in_chats)
