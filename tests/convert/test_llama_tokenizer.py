"""Llama-like SentencePiece tokenizers: the space in front, and what tokenizer.json does beside it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from borealis_gguf.checkpoint.folder import Checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert.tokenizers.llama_tokenizer import PREFIX, vocabulary_kv
from borealis_gguf.convert.tokenizers.preprocessing import SPACES, Preprocessing, read_preprocessing
from borealis_gguf.convert.tokenizers.sentencepiece_model import parse_sentencepiece
from borealis_gguf.errors import InvalidInput

from ..helpers import sentencepiece_models as sp
from ..helpers.checkpoints import write_json
from ..helpers.families import ALL, N_SP, llama_json, llama_pieces, sentencepiece
from ..helpers.llama_tokenizer import measure, tokenize
from ..helpers.norwegian_lines import LINES
from ..helpers.paths import DATA

TEXT = (DATA / "norwegian.txt").read_text(encoding="utf-8")
LINES_AND_MORE = (*LINES, TEXT, *TEXT.splitlines(), "", " ", "  ", "\n", " \n ", "▁")
PREPEND = {"type": "Prepend", "prepend": "▁"}


def read(folder: Path) -> tuple[KV, ...]:
    return vocabulary_kv(Checkpoint(folder, None, {"bos_token_id": 1, "eos_token_id": 2}, {}), N_SP)


def prefix(kv: tuple[KV, ...]) -> bool:
    """What the runtime will do: a space in front, unless a key says no."""
    return next((entry.value for entry in kv if entry.key == PREFIX), True)


def edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


@pytest.mark.parametrize("files", [ALL, ALL[:1] + ALL[2:], ALL[1:], ALL[:2], ALL[1:2], ALL[:1]], ids=str)
@pytest.mark.parametrize("in_front", [True, False])
def test_ids_are_those_of_the_tokenizers_library(files: tuple[str, ...], in_front: bool, tmp_path: Path) -> None:
    """Whichever files there are, with and without the space; llama.cpp's converter adds it to all but a few."""
    sentencepiece(*files, prefix=in_front)(tmp_path)
    kv = read(tmp_path)
    assert prefix(kv) is in_front
    write_json(tmp_path / "tokenizer.json", llama_json(llama_pieces(), in_front))
    gap = measure(kv, tmp_path / "tokenizer.json", LINES_AND_MORE)
    assert (gap.different, gap.example, gap.lines) == (0, "", len(LINES_AND_MORE))


def test_the_space_comes_after_control_tokens_too(tmp_path: Path) -> None:
    sentencepiece(*ALL)(tmp_path)
    text = "<s>Hei på deg</s>og <s> hei"
    hub = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert list(tokenize(read(tmp_path), [text], special=True)[0]) == hub.encode(text, add_special_tokens=False).ids


def test_tokenizer_json_is_believed_over_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sentencepiece(*ALL, prefix=False, add_prefix_space=True)(tmp_path)
    with caplog.at_level(logging.WARNING):
        kv = read(tmp_path)
    assert not prefix(kv)
    assert "add_prefix_space is true, but tokenizer.json does otherwise" in caplog.text


@pytest.mark.parametrize("said", [True, False])
def test_without_tokenizer_json_the_settings_are_believed(said: bool, tmp_path: Path) -> None:
    sentencepiece("tokenizer.model", "tokenizer_config.json", prefix=not said, add_prefix_space=said)(tmp_path)
    kv = read(tmp_path)
    assert prefix(kv) is said
    assert kv[0].key == PREFIX  # where llama.cpp's converter puts it


VIEWS = {
    "gemma": ([SPACES], [{"type": "Split", "pattern": {"String": " "}}], Preprocessing(False)),
    "legacy": ([PREPEND, SPACES], [], Preprocessing(True)),
    "metaspace": (
        [],
        [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}],
        Preprocessing(False),
    ),
    "first": (
        [],
        [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}],
        Preprocessing(True, (), ("no space before a text that begins with one", "no space after a control token")),
    ),
    "old metaspace": (
        [],
        [{"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}],
        Preprocessing(True, (), ("no space before a text that begins with one", "nothing joined across a space")),
    ),
    "nfkc": ([{"type": "NFKC"}, SPACES], [], Preprocessing(False, ("NFKC",))),
    "split": ([SPACES], [{"type": "Digits", "individual_digits": True}], Preprocessing(False, (), ("Digits",))),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_a_tokenizer_does_to_a_text(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    normalizers, pre_tokenizers, preprocessing = VIEWS[name]
    normalizer = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    pre_tokenizer = {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None
    assert read_preprocessing({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}) == preprocessing
    sentencepiece(*ALL[1:])(tmp_path)
    edit(tmp_path / "tokenizer.json", normalizer=normalizer, pre_tokenizer=None if name == "gemma" else pre_tokenizer)
    with caplog.at_level(logging.INFO):
        kv = read(tmp_path)
    assert prefix(kv) is preprocessing.prefix
    if preprocessing.unsupported:
        assert f"a GGUF cannot express {'; '.join(preprocessing.unsupported)}: " in caplog.text
        assert measure(kv, tmp_path / "tokenizer.json").different > 0 or name == "split"
    else:
        assert caplog.text == ""
        assert measure(kv, tmp_path / "tokenizer.json", LINES_AND_MORE).different == 0


def test_other_kinds_have_no_such_view() -> None:
    assert read_preprocessing({}) is None
    assert read_preprocessing({"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel"}}) is None
    assert read_preprocessing({"normalizer": "x"}) is None


def test_a_model_that_changes_letters_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NormalizerSpec: precompiled_charsmap 2, add_dummy_prefix 3, remove_extra_whitespaces 4."""
    data = sp.model(llama_pieces()) + sp.message(3, sp.message(2, b"map") + b"\x18\x01\x20\x01")
    parsed = parse_sentencepiece(data)
    assert (parsed.prefix, parsed.joins_spaces, parsed.maps) == (True, True, True)
    plain = parse_sentencepiece(sp.model(llama_pieces()))
    assert (plain.prefix, plain.joins_spaces, plain.maps) == (False, False, False)
    (tmp_path / "tokenizer.model").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert prefix(read(tmp_path))
    assert "a GGUF cannot express letters replaced; of several spaces one" in caplog.text


def test_no_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"neither tokenizer\.model nor tokenizer\.json is there"):
        read(tmp_path)


def test_added_tokens_that_mind_what_stands_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sentencepiece(*ALL[1:])(tmp_path)
    value = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    value["added_tokens"][1]["single_word"] = value["added_tokens"][2]["rstrip"] = True
    write_json(tmp_path / "tokenizer.json", value)
    read(tmp_path)
    assert "a GGUF cannot express '</s>' take the spaces around them; '<s>' only as whole words: " in caplog.text
