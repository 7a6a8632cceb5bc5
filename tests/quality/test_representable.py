"""The representable part of a tokenizer gives exactly llama.cpp's ids."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from borealis_gguf.convert.tokenizers.byte_level_bpe import bpe_kv, read_bpe
from borealis_gguf.convert.tokenizers.pre_tokenizer import ROUGH_TEKKEN, TEKKEN
from borealis_gguf.quality.text import sample_texts
from borealis_gguf.quality.text.representable import representable

from ..convert.test_byte_level_bpe import STRUCTURES
from ..helpers.checkpoints import write_json
from ..helpers.families import NORA_TOKENIZER, bpe_json, byte_level, llama_json, llama_pieces, split
from ..helpers.llama_tokenizer import tokenize
from ..helpers.norwegian_lines import LINES

WORDS = "blåBær BLÅBÆR åBær ÅBær ÆØÅ Ær éAb Žž ǅ ʰ नमस्ते ไทย ａＢ İi ß ẞ σΣ Ⅳ Ⓐⓐ ªº 𝔄𝔟 ŊÁ čČa"
LETTERS = "aåAÅbæÆBéÉ'\u0301\u0300ǅʰ日ß 1२\n/.-ŽžđĐ🫐कि𝔄"


def lines() -> list[str]:
    """The built-in ones, without names of control tokens, and letters by chance."""
    chance = random.Random(1)
    known = [line for line in (*LINES, *sample_texts.LINES) if "<s>" not in line]
    return [*known, WORDS, *("".join(chance.choices(LETTERS, k=40)) for _ in range(300))]


def ids(folder: Path, value: dict[str, Any]) -> tuple[list[tuple[int, ...]], ...]:
    """The ids in llama.cpp, of the whole tokenizer, and of its representable part."""
    write_json(folder / "tokenizer.json", value)
    n = 1 + max(*value["model"]["vocab"].values(), *(token["id"] for token in value["added_tokens"]))
    found = read_bpe(folder / "tokenizer.json", value, {}, n)
    kv = bpe_kv("here", found, value, {"bos_token": "<s>", "eos_token": "</s>"}, {})
    return (tokenize(kv, lines()), *(encoded(v) for v in (value, representable(value))))


def encoded(value: dict[str, Any]) -> list[tuple[int, ...]]:
    tokenizer = Tokenizer.from_str(json.dumps(value))
    return [tuple(tokenizer.encode(line, add_special_tokens=False).ids) for line in lines()]


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_pre_tokenizer(name: str, tmp_path: Path) -> None:
    pre_tokenizer, ignore_merges, _ = STRUCTURES[name]
    llama_cpp, _, reduced = ids(tmp_path, bpe_json(pre_tokenizer, ignore_merges=ignore_merges))
    assert llama_cpp == reduced


def test_pre_tokenizer_with_every_word_as_a_token(tmp_path: Path) -> None:
    """So that each other way to split shows: a word that is a token is taken whole."""
    value = bpe_json([split(ROUGH_TEKKEN), byte_level()], ignore_merges=True)
    words = Tokenizer.from_str(json.dumps(value)).pre_tokenizer
    vocabulary = value["model"]["vocab"]
    for line in lines():
        for word, _ in words.pre_tokenize_str(line):
            vocabulary.setdefault(word, 10000 + len(vocabulary))
    value["pre_tokenizer"]["pretokenizers"][0] = split(TEKKEN)
    llama_cpp, reference, reduced = ids(tmp_path, value)
    assert sum(a != b for a, b in zip(llama_cpp, reference, strict=True)) > 300
    assert llama_cpp == reduced


def test_every_unsupported_step_at_once(tmp_path: Path) -> None:
    value = json.loads(json.dumps(NORA_TOKENIZER))
    value["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    value["added_tokens"][4] |= {"lstrip": True, "single_word": True}
    llama_cpp, reference, reduced = ids(tmp_path, value)
    assert sum(a != b for a, b in zip(llama_cpp, reference, strict=True)) > 300
    assert llama_cpp == reduced


def test_chats_keep_the_steps_that_templates_emulate() -> None:
    kept = representable(NORA_TOKENIZER, chat=True)["normalizer"]["normalizers"]
    assert [step["type"] for step in kept] == ["Prepend", "Replace", "Replace"]
    words = bpe_json([byte_level(use_regex=True, add_prefix_space=True)])
    spaces = [
        representable(words, chat=chat)["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"]
        for chat in (False, True)
    ]
    assert spaces == [False, True]


def test_sentencepiece_keeps_only_spaces() -> None:
    """llama.cpp joins pieces across spaces, and puts one in front of every stretch of text."""
    pieces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    plain = llama_json(llama_pieces(), True)
    odd = plain | {"normalizer": {"type": "NFKC"}, "pre_tokenizer": pieces}
    assert representable(odd) == representable(odd, chat=True) == plain
    assert representable(llama_json(llama_pieces(), False)) == llama_json(llama_pieces(), False)
