"""The vocabulary: same ids as the checkpoint's own tokenizer, and nothing hostile gets through."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import Llama
from tokenizers import Tokenizer as HubTokenizer

from borealis_gguf.checkpoint.folder import Checkpoint, open_checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert import describe
from borealis_gguf.convert.tokenizers.sentencepiece_model import (
    SentencePieceModel,
    parse_sentencepiece,
    read_sentencepiece,
)
from borealis_gguf.convert.tokenizers.sentencepiece_vocabulary import Tokenizer, read_tokenizer, tokenizer_kv
from borealis_gguf.errors import InvalidInput
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import GGUFModel

from ..helpers.checkpoints import N_NANO, NANO, write_json
from ..helpers.paths import DATA
from ..helpers.sentencepiece_models import BPE, LETTERS, SPECIALS, model, piece, pieces, varint, write_large_model

TEXT = (DATA / "norwegian.txt").read_text(encoding="utf-8")
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WORDS = ("er", "en", *LETTERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copyfile(NANO / name, tmp_path / name)
    return tmp_path


def read(folder: Path, n_vocab: int = N_NANO) -> Tokenizer:
    return read_tokenizer(Checkpoint(folder, None, {}, {}), n_vocab)


def keys(folder: Path, config: dict[str, Any] | None = None, n_vocab: int = N_NANO) -> dict[str, Any]:
    entries = tokenizer_kv(read(folder, n_vocab), config or {})
    return {kv.key.removeprefix("tokenizer.").removeprefix("ggml."): kv.value for kv in entries}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


def small(folder: Path, words: tuple[str, ...] = WORDS, **settings: Any) -> int:
    """A tokenizer.model of a few pieces, and a tokenizer_config.json. Returns the number of pieces."""
    entries = pieces(words)
    (folder / "tokenizer.model").write_bytes(model(entries))
    decoder = {str(id): {"content": text, "special": True} for id, text in enumerate(SPECIALS)}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder} | settings)
    return len(entries)


# --- the same ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["tokenizer.model", "tokenizer.json", None])
def test_llama_cpp_gives_the_ids_of_the_checkpoints_own_tokenizer(folder: Path, missing: str | None) -> None:
    hub = HubTokenizer.from_file(str(NANO / "tokenizer.json"))
    if missing:
        (folder / missing).unlink()
    for name in ("config.json", *(path.name for path in NANO.glob("*.safetensors*"))):
        shutil.copyfile(NANO / name, folder / name)
    described, _ = describe(open_checkpoint(folder), "bf16")
    path = folder / "vocabulary.gguf"
    path.write_bytes(lay_out(path, GGUFModel(described.kv, ()), []).header)
    llama = Llama(str(path), vocab_only=True, verbose=False)
    lines = [*TEXT.splitlines(), TEXT, "", " ", "\n", "\n\n\n", "▁", " ▁ ", "<0x41>", "<bos>", "a<end_of_turn>b"]
    for line in lines:
        ours = llama.tokenize(line.encode(), add_bos=True, special=True)
        assert ours == hub.encode(line).ids, line
    llama.close()


def test_text_that_looks_like_a_turn_stays_text(folder: Path) -> None:
    tokenizer = read(folder)
    for token in ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"):
        assert tokenizer.types[tokenizer.tokens.index(token)] == 3


# --- the vocabulary -------------------------------------------------------------------------------------------------


def test_padding_and_ids_past_the_vocabulary(tmp_path: Path) -> None:
    n = small(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<image_soft_token>": n})
    assert read(tmp_path, n).tokens[-1] == "q"
    padded = read(tmp_path, n + 3)
    assert padded.tokens[n:] == ("<image_soft_token>", f"[PAD{n + 1}]", f"[PAD{n + 2}]")
    assert padded.scores[n:] == (-1000.0, -10000.0, -10000.0)
    assert padded.types[n:] == (4, 5, 5)


def test_types_of_added_tokens(tmp_path: Path) -> None:
    n = small(tmp_path)
    added = {n: ("<b>", False), n + 1: ("<unused7>", False), n + 2: ("▁▁", False), n + 3: ("<|x|>", False)}
    decoder = {str(id): {"content": text, "special": special} for id, (text, special) in added.items()}
    edit(tmp_path / "tokenizer_config.json", lambda c: c["added_tokens_decoder"].update(decoder))
    tokenizer = read(tmp_path, n + 4)
    assert tokenizer.tokens[n:] == ("<b>", "<unused7>", "  ", "<|x|>")
    assert tokenizer.types[n:] == (4, 3, 4, 3)


def test_user_defined_pieces_stay_user_defined(tmp_path: Path) -> None:
    """Purposeful difference: llama.cpp's converter makes them normal pieces, which no merge can reach."""
    n = small(tmp_path)
    extra = model([*pieces(WORDS), ("▁▁▁", 0.0, 4)])
    (tmp_path / "tokenizer.model").write_bytes(extra)
    tokenizer = read(tmp_path, n + 1)
    assert (tokenizer.tokens[n], tokenizer.types[n]) == ("   ", 4)


def test_tokenizer_json_says_what_is_added_where_tokenizer_config_no_longer_does(folder: Path) -> None:
    """Purposeful difference: transformers 5 writes no added_tokens_decoder, and llama.cpp then knows no markers."""
    before = read(folder)
    edit(folder / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder"))
    after = read(folder)
    assert (after.tokens, after.types, after.scores) == (before.tokens, before.types, before.scores)


def test_real_size(tmp_path: Path) -> None:
    write_large_model(tmp_path / "tokenizer.model", 262144)
    write_json(
        tmp_path / "tokenizer_config.json",
        {"added_tokens_decoder": {str(i): {"content": t, "special": True} for i, t in enumerate(SPECIALS)}},
    )
    tokenizer = read(tmp_path, 262208)
    assert len(set(tokenizer.tokens)) == 262208
    assert tokenizer.tokens[262143:262146] == ("q", "[PAD262144]", "[PAD262145]")


# --- special tokens -------------------------------------------------------------------------------------------------


def test_ids_and_switches(folder: Path) -> None:
    found = keys(folder)
    assert [found[f"{k}_token_id"] for k in ("bos", "eos", "unknown", "padding")] == [2, 1, 3, 0]
    assert [found[f"add_{k}_token"] for k in ("bos", "eos", "sep")] == [True, False, False]


@pytest.mark.parametrize("config", [{}, {"eos_token_id": [1, 5]}, {"text_config": {"eos_token_id": None}}])
def test_ids_are_written_though_no_file_names_them(tmp_path: Path, config: dict[str, Any]) -> None:
    """Purposeful difference: llama.cpp writes none, and its runtime then takes Gemma's <bos> for the end of a text."""
    n = small(tmp_path)
    found = keys(tmp_path, config, n)
    assert [found[f"{k}_token_id"] for k in ("bos", "eos", "unknown", "padding")] == [2, 1, 3, 0]


def test_ids_of_config_json_count_after_those_of_the_tokenizer(folder: Path) -> None:
    assert keys(folder, {"eos_token_id": 5})["eos_token_id"] == 1
    (folder / "tokenizer.json").unlink()
    assert keys(folder, {"eos_token_id": 5})["eos_token_id"] == 5
    assert keys(folder, {"text_config": {"eos_token_id": 5}})["eos_token_id"] == 5


def test_bos_as_an_object_is_still_added(folder: Path) -> None:
    """Purposeful difference: llama.cpp compares the object with the text, and switches <bos> off."""
    edit(folder / "tokenizer_config.json", lambda c: c.update(bos_token={"content": "<bos>", "special": True}))
    assert keys(folder)["add_bos_token"] is True


def test_the_end_the_template_adds_wins_and_the_other_ends_a_turn(folder: Path) -> None:
    def ends(t: dict[str, Any]) -> None:
        t["post_processor"]["single"].append({"SpecialToken": {"id": "<end_of_turn>", "type_id": 0}})

    edit(folder / "tokenizer.json", ends)
    found = keys(folder)
    assert (found["eos_token_id"], found["eot_token_id"], found["add_eos_token"]) == (5, 1, True)


# --- chat templates -------------------------------------------------------------------------------------------------


def test_template_of_tokenizer_config_comes_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert keys(folder)["chat_template"] == (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template="A"))
    assert not caplog.records
    assert keys(folder)["chat_template"] == "A"
    assert "differs from chat_template.jinja" in caplog.text


def test_template_of_chat_template_json_comes_last(folder: Path) -> None:
    write_json(folder / "chat_template.json", {"chat_template": "B"})
    assert keys(folder)["chat_template"] != "B"
    (folder / "chat_template.jinja").unlink()
    assert keys(folder)["chat_template"] == "B"


def test_template_is_found_without_tokenizer_config(folder: Path) -> None:
    """Purposeful difference: llama.cpp reads no chat_template.jinja then."""
    (folder / "tokenizer_config.json").unlink()
    found = keys(folder)
    assert found["chat_template"] and found["bos_token_id"] == 2 and found["add_bos_token"] is True


def test_named_templates(folder: Path) -> None:
    """Their order is the list's; llama.cpp's `tokenizer.chat_templates` comes in the order of a hash table."""
    named = [{"name": n, "template": t} for n, t in (("z", "Z"), ("default", "D"), ("tool use", "T"), ("a", ""))]
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=named))
    found = keys(folder)
    assert (found["chat_template"], found["chat_template.z"], found["chat_template.tool_use"]) == ("D", "Z", "T")
    assert found["chat_templates"] == ("z", "tool_use", "a") and "chat_template.a" not in found


# --- hostile files --------------------------------------------------------------------------------------------------


def refused(folder: Path, *words: str, n_vocab: int = N_NANO, config: dict[str, Any] | None = None) -> None:
    with pytest.raises(InvalidInput) as caught:
        keys(folder, config, n_vocab)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("er", 0.0, 1), ["'er'", "both"]),
        (("", 0.0, 1), ["empty"]),
        (("x" * 70000, 0.0, 1), ["70000 bytes"]),
        (("a\0", 0.0, 1), ["NUL"]),
        (("new", float("nan"), 1), ["score nan"]),
        (("new", 0.0, 7), ["type 7"]),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_bad_pieces(tmp_path: Path, extra: tuple[str, float, int], words: list[str]) -> None:
    n = small(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model([*pieces(WORDS), extra]))
    refused(tmp_path, "tokenizer.model", *words, n_vocab=n + 1)


def test_pieces_that_are_not_text(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x04\x0a\x02\xff\xfe")
    refused(tmp_path, "tokenizer.model", "byte 4", "UTF-8")


def test_unigram(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model(pieces(WORDS), model_type=1))
    refused(tmp_path, "type 1, not BPE")


def test_a_byte_is_missing(tmp_path: Path) -> None:
    n = small(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model(p for p in pieces(WORDS) if p[0] != "<0x0A>"))
    refused(tmp_path, "<0x0A>", n_vocab=n)


def test_more_pieces_than_embeddings(folder: Path) -> None:
    refused(folder, "vocab_size is 4095, which leaves these tokens without", "(id 4095)", n_vocab=N_NANO - 1)


def test_no_tokenizer(tmp_path: Path) -> None:
    refused(tmp_path, "neither tokenizer.model nor tokenizer.json")


def test_turns_must_be_control_tokens(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c["added_tokens_decoder"]["5"].update(special=False))
    refused(folder, "<end_of_turn> (id 5)", "not a control token")


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"-1": {"content": "x"}}, ["'-1'"]),
        ({"x": {"content": "x"}}, ["'x'"]),
        ({"1": {}}, ["id 1 has no content"]),
        ({"1": "x"}, ["'1'"]),
        ({"4100": {"content": "far"}}, ["no token has the id 4096"]),
        ({"20": {"content": "er"}}, ["tokens 20 and", "'er'"]),
        ([], []),
    ],
    ids=repr,
)
def test_bad_added_tokens_decoder(folder: Path, decoder: Any, words: list[str]) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=decoder))
    if words:
        refused(folder, *words, n_vocab=N_NANO + 10)
    else:
        assert read(folder).tokens  # an empty one: tokenizer.json says what is added


@pytest.mark.parametrize("id", [-1, "3", True, None, 1.5])
def test_bad_added_tokens_json(folder: Path, id: Any) -> None:
    write_json(folder / "added_tokens.json", {"<new>": id})
    refused(folder, "added_tokens.json", "<new>")


@pytest.mark.parametrize("id", [4096, -1])
def test_special_ids_out_of_range(folder: Path, id: int) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "eos_token_id", str(id), config={"eos_token_id": id})


def swap(t: dict[str, Any]) -> None:
    v = t["model"]["vocab"]
    v["er"], v["en"] = v["en"], v["er"]


@pytest.mark.parametrize("both", [True, False])
def test_files_that_disagree(folder: Path, both: bool) -> None:
    if both:
        edit(folder / "tokenizer.json", swap)
        refused(folder, "in tokenizer.model")
    else:
        edit(folder / "tokenizer_config.json", lambda c: c["added_tokens_decoder"]["10"].update(content="<unused9>"))
        refused(folder, "token 10", "<unused0>")


JSON_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "gap": (lambda t: t["model"]["vocab"].update({"🜁🜂": 4099}), "no token has the id 4096"),
    "id twice": (lambda t: t["model"]["vocab"].update({"nytt": 300}), "taken"),
    "negative id": (lambda t: t["model"]["vocab"].update({"nytt": -2}), "out of range"),
    "merge of an unknown piece": (lambda t: t["model"]["merges"].append(["qqq", "q"]), "unknown pieces"),
    "merge of three": (lambda t: t["model"]["merges"].append("e r s"), "two pieces"),
    "a merge is missing": (lambda t: t["model"]["merges"].remove(["e", "r"]), "other ids"),
    "no merges": (lambda t: t["model"].pop("merges"), "must be a list"),
    "WordPiece": (lambda t: t["model"].update(type="WordPiece"), "'WordPiece'"),
    "no bytes": (lambda t: t["model"].update(byte_fallback=False), "byte_fallback"),
    "another normalizer": (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer"),
    "a regex": (
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}),
        "splits the text",
    ),
    "no model": (lambda t: t.pop("model"), "no model"),
    "added tokens": (lambda t: t.update(added_tokens=[{"id": "1"}]), "added_tokens"),
    "another beginning": (
        lambda t: t["post_processor"]["single"][0]["SpecialToken"].update(id="<pad>"),
        "begins a text with '<pad>'",
    ),
    "unknown post-processor": (lambda t: t.update(post_processor={"type": "BertProcessing"}), "BertProcessing"),
    "broken template": (lambda t: t["post_processor"].update(single=[{"Sequence": 3}]), "neither a SpecialToken"),
    "half a character": (lambda t: t["model"]["vocab"].update({"\ud800": 4096}), "not text"),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_bad_tokenizer_json(folder: Path, fault: str) -> None:
    change, words = JSON_FAULTS[fault]
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(value)
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    (folder / "tokenizer.model").unlink()
    refused(folder, words, n_vocab=N_NANO + 10)


@pytest.mark.parametrize("template", [3, [3], [{"name": "x"}], {"a": "b"}], ids=repr)
def test_bad_chat_template(folder: Path, template: Any) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    refused(folder, "tokenizer_config.json", "chat_template")


def test_a_template_of_another_encoding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("blåbær".encode("latin-1"))
    refused(folder, "chat_template.jinja", "UTF-8")


# --- tokenizer.model, byte by byte ----------------------------------------------------------------------------------


def test_reads_what_was_written() -> None:
    entries = [("▁er", -1.5, 1), ("<unk>", 0.0, 2), ("å" * 100, -3.0, 4)]
    read_back = parse_sentencepiece(model(entries))
    assert list(zip(read_back.pieces, read_back.scores, read_back.types, strict=True)) == entries
    assert read_back.model_type == BPE


def test_every_truncation_is_an_error_or_shorter(tmp_path: Path) -> None:
    data, path = model(pieces(("er", "en"))), tmp_path / "tokenizer.model"
    for end in range(0, len(data), 11):
        path.write_bytes(data[:end])
        try:
            assert len(read_sentencepiece(path).pieces) <= 6 + 256 + 2
        except InvalidInput as error:
            assert "tokenizer.model" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff",
        b"\x0a" + b"\xff" * 12,
        b"\x0a" + varint(2**64 - 1) + b"x",
        b"\x0a\x05\x0a\x0ahello",
        b"\x0b\x00",
        b"\x02\x01x",
        b"\x0a\x02\x15\x00",
        piece("a", 0.0)[:-1],
    ],
    ids=repr,
)
def test_lying_lengths(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(InvalidInput, match="not a SentencePiece model: byte"):
        read_sentencepiece(tmp_path / "tokenizer.model")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60) | st.tuples(st.binary(max_size=6), st.integers(0, 255)).map(lambda t: t[0] + bytes([t[1]]))
)
def test_any_bytes(data: bytes) -> None:
    try:
        parsed = parse_sentencepiece(data)
    except ValueError as error:
        assert str(error).startswith("byte ")
    else:
        assert isinstance(parsed, SentencePieceModel) and parsed.pieces


PIECES = st.tuples(st.text(max_size=130), st.floats(width=32, allow_nan=False), st.integers(1, 200))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=12), st.integers(0, 8))
def test_any_pieces(expected: list[tuple[str, float, int]], cut: int) -> None:
    """Pieces as SentencePiece writes them, whole and cut off."""
    data = b"".join(piece(*each) for each in expected)
    try:
        parsed = parse_sentencepiece(data[: len(data) - cut])
    except ValueError as error:
        assert cut and str(error).startswith("byte ")
    else:
        found = list(zip(parsed.pieces, parsed.scores, parsed.types, strict=True))
        assert found == (expected if not cut else expected[: len(found)])


@pytest.mark.parametrize("head", [b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04", b"<!DOCTYPE html>"])
def test_something_else(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(head + bytes(100))
    with pytest.raises(InvalidInput, match="not a SentencePiece model but"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_kv_types(folder: Path) -> None:
    by_key = {kv.key: kv for kv in tokenizer_kv(read(folder), {})}
    assert isinstance(by_key["tokenizer.ggml.tokens"], KV)
    kinds = [by_key[f"tokenizer.ggml.{key}"].item_type for key in ("tokens", "scores", "token_type")]
    assert [kind.name if kind else None for kind in kinds] == ["STRING", "FLOAT32", "INT32"]
