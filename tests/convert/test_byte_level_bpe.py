"""Byte-level BPE vocabularies: recognised by structure, ids as `tokenizers` has them, every gap named and measured."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from borealis_gguf.checkpoint.folder import Checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert.metadata.template_whitespace import emulated_steps
from borealis_gguf.convert.tokenizers.byte_level_bpe import LETTERS, Bpe, bpe_kv, read_bpe
from borealis_gguf.convert.tokenizers.llama_tokenizer import vocabulary_kv
from borealis_gguf.convert.tokenizers.pre_tokenizer import BLOOM, CASES, GPT4O, LLAMA3, PRE_TYPES, QWEN2, TEKKEN
from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
from borealis_gguf.runtime.prompting.template_sandbox import render

from ..helpers.checkpoints import write_json
from ..helpers.families import (
    BOS,
    CHATML,
    DIGITS,
    N_BPE,
    NORA,
    NORA_NORMALIZER,
    NORA_TOKENIZER,
    bpe,
    bpe_json,
    byte_level,
    split,
)
from ..helpers.llama_tokenizer import measure, tokenize
from ..helpers.norwegian_lines import LINES
from ..helpers.paths import DATA

TEXT = (DATA / "norwegian.txt").read_text(encoding="utf-8")
LINES_AND_MORE = (*LINES, TEXT, *TEXT.splitlines(), "a b", " ", "\n", "\n\n\n", "\r\n", " \n ")
STRUCTURES: dict[str, tuple[list[dict[str, Any]], bool, bool | None]] = {
    "gpt-2": ([byte_level(use_regex=True)], False, None),
    "trillion": ([byte_level(use_regex=True)], False, False),
    "smollm": ([DIGITS, byte_level(use_regex=True)], False, None),
    "starcoder": ([split(r"\p{N}"), byte_level(use_regex=True)], False, True),
    "llama-bpe": ([split(LLAMA3), byte_level()], True, None),
    "dbrx": ([split(LLAMA3), byte_level()], False, False),
    "qwen2": ([split(QWEN2), byte_level()], False, None),
    "stablelm2": ([split(QWEN2) | {"behavior": "Removed", "invert": True}, byte_level()], False, True),
    "tekken": ([split(TEKKEN), byte_level()], True, None),
    "gpt-4o": ([split(GPT4O), byte_level()], False, None),
    "bloom": ([split(BLOOM), byte_level()], False, None),
    "poro-chat": ([split(BLOOM), byte_level()], False, False),
    "viking": ([split(BLOOM), DIGITS, byte_level()], False, None),
}
"""What a tokenizer.json says (pre-tokenizer, ignore_merges, clean_up_tokenization_spaces), by the pre type it is."""


def read(folder: Path, value: dict[str, Any], n_vocab: int = N_BPE, **config: Any) -> Bpe:
    write_json(folder / "tokenizer.json", value)
    return read_bpe(folder / "tokenizer.json", value, config, n_vocab)


def keys(found: Bpe, value: dict[str, Any], **config: Any) -> tuple[KV, ...]:
    return bpe_kv("here", found, value, {"bos_token": "<s>", "eos_token": "</s>"} | config, {})


def value_of(kv: tuple[KV, ...], key: str) -> Any:
    return next((entry.value for entry in kv if entry.key == f"tokenizer.{key}"), None)


def write(folder: Path, value: dict[str, Any], **settings: Any) -> Checkpoint:
    bpe(value, **settings)(folder)
    return Checkpoint(folder, None, {}, {})


# --- recognised by structure ----------------------------------------------------------------------------------------


def test_every_pre_type_has_a_case() -> None:
    assert list(STRUCTURES) == [type.name for type in PRE_TYPES]


@pytest.mark.parametrize("name", STRUCTURES)
def test_ids_are_those_of_the_tokenizers_library(name: str, tmp_path: Path) -> None:
    pre_tokenizer, ignore_merges, cleans = STRUCTURES[name]
    value = bpe_json(pre_tokenizer, ignore_merges=ignore_merges)
    found = read(tmp_path, value, clean_up_tokenization_spaces=cleans)
    assert found.match.type.name == name
    gap = measure(keys(found, value), tmp_path / "tokenizer.json", LINES_AND_MORE)
    assert gap.lines == len(LINES_AND_MORE) > 50
    if not found.match.type.inexact:
        assert found.unsupported == ()
        assert (gap.different, gap.example) == (0, "")
    else:
        assert found.unsupported == (CASES,)
        assert gap.example == "ÆRLIG TALT: DETTE ER ØVERST PÅ ÅRETS LISTE"
        assert gap.different == 2


def test_pre_types_tell_each_other_apart(tmp_path: Path) -> None:
    """The lines would show a wrong one: each other way of splitting gives other ids."""
    value = bpe_json(STRUCTURES["qwen2"][0])
    kv = keys(read(tmp_path, value), value)
    for type in PRE_TYPES:
        wrong = tuple(KV(e.key, e.type, type.name) if e.key == "tokenizer.ggml.pre" else e for e in kv)
        alike = type.splits == (QWEN2,)
        assert (measure(wrong, tmp_path / "tokenizer.json").different == 0) == alike, type.name


def test_a_bos_that_only_the_pre_type_would_add_is_switched_off(tmp_path: Path) -> None:
    for name, post, expected in (
        ("tekken", None, False),
        ("tekken", BOS, True),
        ("llama-bpe", byte_level(), False),
        ("gpt-2", None, None),
    ):
        value = bpe_json(STRUCTURES[name][0], ignore_merges=STRUCTURES[name][1], post_processor=post)
        assert value_of(keys(read(tmp_path, value), value), "ggml.add_bos_token") is expected


def test_token_types_and_padding(tmp_path: Path) -> None:
    value = bpe_json(STRUCTURES["gpt-2"][0])
    value["added_tokens"] += [
        {"id": N_BPE, "content": "<|tool|>", "special": False},
        {"id": N_BPE + 1, "content": "<b>", "special": False},
        {"id": N_BPE + 2, "content": "<start_of_turn>", "special": False},
    ]
    found = read(tmp_path, value, N_BPE + 5)
    assert found.tokens[N_BPE:] == ("<|tool|>", "<b>", "<start_of_turn>", f"[PAD{N_BPE + 3}]", f"[PAD{N_BPE + 4}]")
    assert found.types[N_BPE:] == (3, 4, 3, 5, 5)
    assert found.types[:8] == (3,) * 7 + (1,)


def test_letters_are_those_of_the_byte_level() -> None:
    assert frozenset(pre_tokenizers.ByteLevel.alphabet()) == LETTERS and len(LETTERS) == 256


@pytest.mark.parametrize("structure", ["gpt-2", "qwen2"])
def test_a_fallback_to_bytes_that_is_never_taken_changes_nothing(structure: str, tmp_path: Path) -> None:
    """Every byte's letter is a token, so there is nothing to fall back for: with `<0x..>` tokens there or not."""
    value = bpe_json(STRUCTURES[structure][0], ignore_merges=STRUCTURES[structure][1])
    plain = read(tmp_path, value)
    value["model"]["byte_fallback"] = True
    assert read(tmp_path, value) == plain
    value["model"]["vocab"] |= {f"<0x{byte:02X}>": N_BPE + byte for byte in range(256)}
    kv = keys(read(tmp_path, value, N_BPE + 256), value)
    lines = [*LINES_AND_MORE, "\x00\x7f\xad \u2028", "\U0010ffff"]
    assert measure(kv, tmp_path / "tokenizer.json", lines).different == 0
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("".join(lines)).ids
    assert max(ids) < N_BPE


@pytest.mark.parametrize("letter", ["\u0100", "\u00ff", "!"])
def test_a_fallback_to_bytes_that_could_be_taken_is_refused(letter: str, tmp_path: Path) -> None:
    """One byte whose letter is no token is enough."""
    value = bpe_json(STRUCTURES["gpt-2"][0])
    model = value["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if letter not in token}
    model["merges"] = [merge for merge in model["merges"] if letter not in "".join(merge)]
    read(tmp_path, value)
    model["byte_fallback"] = True
    refused(tmp_path, value, "byte_fallback is 'True'; llama.cpp has no tokenizer that does this")


# --- what GGUF cannot express ---------------------------------------------------------------------------------------


def test_each_gap_is_named(tmp_path: Path) -> None:
    found = read(tmp_path, NORA_TOKENIZER)
    assert found.unsupported == (
        "Prepend(' ')",
        "NFKC",
        r"Replace('\n' → '\n ')",
        r"Replace(/ *\n/ → '\n')",
        "Split(/.{1,24}/)",
        CASES,
    )
    value = bpe_json([byte_level(use_regex=True, add_prefix_space=True)], ignore_merges=True)
    value["added_tokens"][4]["lstrip"] = True
    assert read(tmp_path, value).unsupported == (
        "ByteLevel's space in front",
        "ignore_merges is true",
        "'<mask>' take the spaces around them",
    )
    words = bpe_json([split(QWEN2), byte_level(add_prefix_space=True)])
    assert read(tmp_path, words).unsupported == ("ByteLevel's space in front of every word",)


def test_what_a_gguf_cannot_express_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = write(tmp_path, NORA_TOKENIZER, chat_template=CHATML)
    with caplog.at_level(logging.INFO):
        kv = vocabulary_kv(checkpoint, N_BPE)
    (record,) = caplog.records
    told = record.getMessage()
    assert record.levelno == logging.WARNING and "\n" not in told
    assert "a GGUF cannot express Prepend(' '); NFKC; Replace(" in told
    assert told.endswith(r"; in chats the template does Prepend(' '), Replace('\n' → '\n '), Replace(/ *\n/ → '\n')")
    gap = measure(kv, tmp_path / "tokenizer.json")
    assert (gap.different, gap.lines, gap.example) == (30, 30, "Hovedstaden i Norge heter Oslo.")
    steps = [step.apply for step in emulated_steps(read(tmp_path, NORA_TOKENIZER).match)]
    left = measure(kv, tmp_path / "tokenizer.json", steps=steps)
    assert (left.different, left.example) == (5, "ÆRLIG TALT: DETTE ER ØVERST PÅ ÅRETS LISTE")


def test_a_normalizer_that_changes_nothing_changes_no_ids(tmp_path: Path) -> None:
    never = [{"type": "Replace", "pattern": {"String": "\ue000"}, "content": "x"}]
    kv = vocabulary_kv(write(tmp_path, bpe_json(STRUCTURES["gpt-2"][0], never)), N_BPE)
    assert measure(kv, tmp_path / "tokenizer.json").different == 0


def test_planning_loads_no_tokenizers_llama_cpp_or_jinja(tmp_path: Path) -> None:
    write(tmp_path, NORA_TOKENIZER, chat_template=CHATML)
    code = (
        "import sys; from pathlib import Path; from borealis_gguf.checkpoint.folder import Checkpoint; "
        "from borealis_gguf.convert.tokenizers.llama_tokenizer import vocabulary_kv; "
        "vocabulary_kv(Checkpoint(Path(sys.argv[1]), None, {}, {}), int(sys.argv[2])); "
        "print(sorted({'tokenizers', 'llama_cpp', 'jinja2'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(N_BPE)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- what the chat template makes up for ----------------------------------------------------------------------------

TOLD_BY_OTHERS = {LINES[5], LINES[8], LINES[22], LINES[23], LINES[24]}
"""Upper-case Ø; NFKC of …, of combining rings, of ligatures and fractions; 24 letters a word (emoji)."""


@pytest.mark.parametrize("line", LINES)
def test_a_chat_has_the_ids_of_the_checkpoints_own(line: str, tmp_path: Path) -> None:
    kv = vocabulary_kv(write(tmp_path, NORA_TOKENIZER, chat_template=CHATML), N_BPE)
    messages = [
        {"role": "system", "content": "Du er til hjelp.\n\nSvar kort. "},
        {"role": "user", "content": line},
        {"role": "assistant", "content": " ja   \n nei"},
        {"role": "user", "content": ""},
    ]
    wanted = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(
        render(ChatTemplate(CHATML, "<s>", "</s>"), messages), add_special_tokens=False
    )
    rendered = render(ChatTemplate(value_of(kv, "chat_template"), "<s>", "</s>"), messages)
    (ids,) = tokenize(kv, [rendered], special=True)
    assert (list(ids) == wanted.ids) == (line not in TOLD_BY_OTHERS)
    plain = render(ChatTemplate(CHATML, "<s>", "</s>"), messages)
    assert list(tokenize(kv, [plain], special=True)[0]) != wanted.ids


def test_steps_do_in_python_what_they_do_in_jinja(tmp_path: Path) -> None:
    found = read(tmp_path, NORA_TOKENIZER)
    for text in ("a", "a\n", "\n", " \n \n", "a  \n  b\n\nc  ", "  x"):
        expected = text
        for step in emulated_steps(found.match):
            expected = step.apply(expected)
            source = f"{{% set part = messages[0].content %}}{step.jinja}{{{{ part }}}}"
            rendered = render(ChatTemplate(source), [{"role": "user", "content": text}])
            assert rendered == step.apply(text), (text, step.jinja)
        normalizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).normalizer
        assert expected == normalizer.normalize_str(text)


def test_a_template_that_needs_nothing_is_left_alone(tmp_path: Path) -> None:
    kv = vocabulary_kv(write(tmp_path, bpe_json(STRUCTURES["gpt-2"][0]), chat_template=CHATML), N_BPE)
    assert value_of(kv, "chat_template") == CHATML


def test_named_templates_and_odd_line_ends(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "\nA{{ bos_token }}B\n"}, {"name": "tool", "template": "C"}]
    kv = vocabulary_kv(write(tmp_path, bpe_json(NORA, NORA_NORMALIZER, True), chat_template=named), N_BPE)
    messages = [{"role": "user", "content": "x"}]
    assert render(ChatTemplate(value_of(kv, "chat_template"), "<s>"), messages) == "\n A<s> B"
    assert render(ChatTemplate(value_of(kv, "chat_template.tool")), messages) == " C"


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(folder: Path, value: dict[str, Any], match: str, n_vocab: int = N_BPE) -> None:
    with pytest.raises(InvalidInput, match=match) as caught:
        read_bpe(folder / "tokenizer.json", json.loads(json.dumps(value)), {}, n_vocab)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        [split(r"\w+|\s+"), byte_level()],
        [split(QWEN2) | {"behavior": "MergedWithNext"}, byte_level()],
        [split(BLOOM) | {"behavior": "Removed", "invert": True}, byte_level()],
        [{"type": "Whitespace"}],
        [split(QWEN2)],
        [byte_level()],
        [],
    ],
)
def test_an_unknown_way_of_splitting_is_refused(pre_tokenizer: list[dict[str, Any]], tmp_path: Path) -> None:
    refused(tmp_path, bpe_json(pre_tokenizer), r"it splits words by .*, as no pre-tokenizer of llama\.cpp does")


def test_hostile_vocabularies(tmp_path: Path) -> None:
    def changed(**model: Any) -> dict[str, Any]:
        value = bpe_json(STRUCTURES["gpt-2"][0])
        value["model"] |= model
        return value

    vocabulary = bpe_json([])["model"]["vocab"]
    refused(tmp_path, changed(type="WordPiece"), "type is 'WordPiece'")
    refused(tmp_path, changed(byte_fallback="yes"), "byte_fallback is 'yes'")
    refused(tmp_path, changed(byte_fallback=True, vocab=None), "byte_fallback is 'True'")
    refused(tmp_path, changed(dropout=0.1), "dropout is '0.1'")
    refused(tmp_path, changed(end_of_word_suffix="</w>"), "end_of_word_suffix")
    refused(tmp_path, changed(vocab={}), "must be an object of tokens")
    refused(tmp_path, changed(vocab=vocabulary | {"x y": 7}), "an id to two tokens")
    refused(tmp_path, changed(vocab=vocabulary | {"x y": "8"}), "something that is no id")
    refused(
        tmp_path, changed(vocab=vocabulary | {"x y": N_BPE}), rf"vocab_size is {N_BPE}, .*: 'x y' \(id {N_BPE}\); call"
    )
    refused(tmp_path, changed(vocab=vocabulary | {"a\0": N_BPE}), "holds a NUL", N_BPE + 1)
    refused(tmp_path, changed(vocab=vocabulary | {"": N_BPE}), "is empty", N_BPE + 1)
    refused(tmp_path, changed(vocab=vocabulary | {"\ud800": N_BPE}), "is not text", N_BPE + 1)
    refused(tmp_path, changed(merges=[]), "must be a list of merges")
    refused(tmp_path, changed(merges=[["ø", "xyz"]]), "merge 0, .* is of unknown tokens")
    refused(tmp_path, changed(merges=["abc"]), "merge 0 is 'abc'; it must be two pieces")
    twice = changed()
    twice["added_tokens"].append({"id": N_BPE, "content": "<s>"})
    refused(tmp_path, twice, "tokens 1 and .* are both '<s>'", N_BPE + 1)
    twice["added_tokens"][-1] = {"id": -1, "content": "x"}
    refused(tmp_path, twice, "'x' has the id -1")


def test_no_eos_is_refused(tmp_path: Path) -> None:
    value = bpe_json(STRUCTURES["gpt-2"][0])
    with pytest.raises(InvalidInput, match="no file says which token is eos"):
        bpe_kv("here", read(tmp_path, value), value, {}, {})
    assert value_of(bpe_kv("here", read(tmp_path, value), value, {}, {"eos_token_id": 2}), "ggml.bos_token_id") is None
