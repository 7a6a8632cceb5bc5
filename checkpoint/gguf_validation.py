"""Checks that the metadata of a well-formed GGUF agrees with its tensors: block count, vocabulary, token ids."""

import re
from collections import Counter
from typing import NoReturn

from gguf.constants import GGUFValueType

from ..errors import InvalidInput
from .file_access import quote
from .gguf_header import GGUFFile
from .types import KV

ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,64}")
BLOCK = re.compile(r"(?:blk|v\.blk|a\.blk)\.(\d+)\.")
PER_TOKEN = (("scores", GGUFValueType.FLOAT32), ("token_type", GGUFValueType.INT32))
TOKEN_IDS = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask")  # the GGUF key is misspelled


def check_model(file: GGUFFile) -> None:
    """Refuses a GGUF that is no model, or whose block count or vocabulary contradicts its tensors and arrays.

    llama.cpp does not compare the lengths of tokenizer arrays, so it would read past the end of a short one.
    """
    architecture = file.value("general.architecture")
    kind = file.value("general.type", "model")
    if kind not in ("model", "mmproj"):
        raise InvalidInput(f"{file.path}: general.type is {quote(str(kind))}; a model is needed here")
    if not isinstance(architecture, str) or not architecture:
        raise InvalidInput(f"{file.path}: general.architecture is missing; this GGUF holds no model")
    if not ARCHITECTURE.fullmatch(architecture):
        raise InvalidInput(f"{file.path}: general.architecture is {quote(architecture)}, which no model has")
    if file.tensors:
        _check_blocks(file, architecture)
    _check_tokenizer(file)


def _check_blocks(file: GGUFFile, architecture: str) -> None:
    keys = [f"{architecture}.block_count"]
    if architecture == "clip":
        keys = ["clip.vision.block_count", "clip.audio.block_count"]
    block_counts = [kv for key in keys if (kv := file.find(key))]
    for kv in block_counts:
        if kv.type is not GGUFValueType.UINT32:
            _fail(file, kv, f"is {kv.type.name}, not UINT32")
    present = {int(match[1]) for name in file.tensors if (match := BLOCK.match(name))}
    if not present:
        return
    blocks = max(present) + 1
    if not block_counts:
        raise InvalidInput(f"{file.path}: {keys[0]} is missing; make the GGUF again from its checkpoint")
    if max(kv.value for kv in block_counts) != blocks:
        _fail(file, block_counts[0], f"is {block_counts[0].value}, but the tensors belong to {blocks} blocks")
    if len(present) != blocks:
        missing = next(bid for bid in range(blocks) if bid not in present)
        _fail(file, block_counts[0], f"is {blocks}, but block {missing} has no tensors")


def _check_tokenizer(file: GGUFFile) -> None:
    tokens = file.find("tokenizer.ggml.tokens")
    merges = file.find("tokenizer.ggml.merges")
    for kv in filter(None, (tokens, merges)):
        _check_array(file, kv, GGUFValueType.STRING)
    if tokens is None:
        return
    check_tokens_differ(file)
    n_vocab = len(tokens.value)
    for name, item_type in PER_TOKEN:
        kv = file.find(f"tokenizer.ggml.{name}")
        if kv is not None:
            _check_array(file, kv, item_type)
            if len(kv.value) != n_vocab:
                _fail(file, kv, f"has {len(kv.value)} items for {n_vocab} tokens")
    for name in TOKEN_IDS:
        kv = file.find(f"tokenizer.ggml.{name}_token_id")
        if kv is not None:
            _check_id(file, kv, n_vocab)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[:-1] != (n_vocab,):
        _fail(file, tokens, f"has {n_vocab} items, but token_embd.weight has shape {list(embedding.shape)}")


def check_tokens_differ(file: GGUFFile) -> None:
    """Refuses a vocabulary with one text twice: llama.cpp would end the process that loads it."""
    tokens = file.find("tokenizer.ggml.tokens")
    texts = tokens.value if tokens and tokens.item_type is GGUFValueType.STRING else ()
    if len(set(texts)) == len(texts):
        return
    twice = next((text for text, count in Counter(texts).items() if count > 1 and text), None)
    if tokens and twice is not None:  # llama.cpp gives empty texts names of their own
        _fail(file, tokens, f"has {quote(twice)} twice")


def _check_array(file: GGUFFile, kv: KV, item_type: GGUFValueType) -> None:
    if kv.type is not GGUFValueType.ARRAY or kv.item_type is not item_type:
        actual = kv.type if kv.item_type is None else kv.item_type
        _fail(file, kv, f"is {actual.name}, not an array of {item_type.name}")


def _check_id(file: GGUFFile, kv: KV, n_vocab: int) -> None:
    # llama.cpp drops an out-of-range id with a warning; without its EOS a model may never stop generating
    if kv.type is not GGUFValueType.UINT32 or kv.value >= n_vocab:
        _fail(file, kv, f"is {kv.type.name} {kv.value}, not one of {n_vocab} token ids as UINT32")


def _fail(file: GGUFFile, kv: KV, problem: str) -> NoReturn:
    raise InvalidInput(f"{file.path}: {kv.key} {problem}; make the GGUF again from its checkpoint")
