"""The format: our reader against answers of Ollama's own parser, quoting there and back, and every refusal."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from borealis_gguf.errors import InvalidInput
from borealis_gguf.modelfiles.read import read_modelfile
from borealis_gguf.modelfiles.syntax import FENCE, PARAMETERS, Instruction, format_instruction, quote

from ..helpers.paths import DATA

# Texts, and what Ollama's parser (August 2026) made of each: [name, value] pairs, or null for an error.
OLLAMA = json.loads((DATA / "ollama_parser.json").read_text(encoding="utf-8"))
FROM = "FROM ./a.gguf\n"


def ollama_form(instruction: Instruction) -> list[str]:
    if instruction.name == "MESSAGE":
        return ["message", f"{instruction.key}: {instruction.value}"]
    if instruction.name == "FROM":
        return ["model", instruction.value]
    return [instruction.key or instruction.name.lower(), instruction.value]


def test_what_we_accept_ollama_reads_in_the_same_way() -> None:
    accepted = 0
    for text, commands in OLLAMA:
        try:
            ours = read_modelfile(text)
        except InvalidInput:
            continue
        accepted += 1
        assert list(map(ollama_form, ours)) == commands, text
    assert accepted == 140


@given(st.text(st.sampled_from(" \n\t\"#aø<{'") | st.characters(codec="utf-8"), max_size=30))
def test_a_value_comes_back_or_is_refused(value: str) -> None:
    try:
        written = [
            Instruction("SYSTEM", value),
            Instruction("MESSAGE", value, "user"),
            Instruction("PARAMETER", value, "stop"),
        ]
        text = FROM + "\n".join(map(format_instruction, written)) + "\n"
    except InvalidInput:
        assert FENCE in value or any(not (char.isprintable() or char in "\n\t") for char in value)
        return
    assert read_modelfile(text)[1:] == written


@given(st.text(st.sampled_from(' \n\t"aø'), max_size=12))
def test_quoting_is_plain_where_it_can_be(value: str) -> None:
    assume(FENCE not in value)
    plain = value != "" and value.strip(" \t") == value and "\n" not in value and value[0] != '"'
    assert quote(value) == (value if plain else f"{FENCE}{value}{FENCE}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('SYSTEM """a""" b"""', "three double quotes"),
        ('SYSTEM "a', "line 2: the quote is never closed"),
        ('SYSTEM """a\nb', "line 2: the quote is never closed"),
        ("SYSTEM a\u00a0b", "U+00A0 (NO-BREAK SPACE)"),
        ("SYSTEM a\u200bb", "U+200B (ZERO WIDTH SPACE)"),
        ("SYSTEM a\x07b", "U+0007 (a control character)"),
        ("SYSTEM a\ud800b", "U+D800"),
        ("SYSTEM a\nb", "line 3: expected a word and a space, not 'b'"),
        ("SYSTEM a\r\n", "carriage returns"),
        ("FROM ~/a.gguf", "leads out"),
        ("FROM ../a.gguf", "leads out"),
        ("FROM b\\..\\a.gguf", "leads out"),
        ('FROM "a\nb"', "one path"),
        ("FROM ", "one path"),
        ("PARAMETER mirostat 1", "no parameter 'mirostat'"),
        ("PARAMETER top_k 1.5", "'1.5' is no value for the parameter top_k"),
        ("PARAMETER top_k ١", "no value"),
        ("PARAMETER temperature warm", "no value"),
        ("PARAMETER temperature nan", "no value"),
        ("PARAMETER use_mmap yes", "no value"),
        ("PARAMETER top_k 1\nPARAMETER top_k 2", "line 3: PARAMETER top_k is given a second time"),
        ("SYSTEM a\nSYSTEM b", "second time"),
        ("MESSAGE tool hi", "role 'tool'"),
        ("ENTRYPOINT a", "'ENTRYPOINT' is no instruction"),
        ("SYSTEM", "expected a word and a space"),
    ],
)
def test_reader_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_modelfile(FROM + text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_from_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no FROM"):
        read_modelfile("# FROM ./a\nSYSTEM a\n")


def test_from_must_exist_where_the_modelfile_lies(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a\.gguf is no file; Ollama would take it for a model's name"):
        read_modelfile(FROM, tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"")
    assert read_modelfile(FROM, tmp_path) == [Instruction("FROM", "./a.gguf")]


def test_stop_may_repeat_and_names_have_any_case() -> None:
    text = "from ./a.gguf\n  # note\n\nParameter stop <a>\nPARAMETER stop b c\nPARAMETER use_mmap false\n"
    assert read_modelfile(text) == [
        Instruction("FROM", "./a.gguf"),
        Instruction("PARAMETER", "<a>", "stop"),
        Instruction("PARAMETER", "b c", "stop"),
        Instruction("PARAMETER", "false", "use_mmap"),
    ]


def test_parameters_are_the_ones_ollama_has() -> None:
    sampling = {"seed", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "stop"}
    penalties = {"repeat_penalty", "presence_penalty", "frequency_penalty"}
    running = {"num_keep", "num_predict", "num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"}
    assert set(PARAMETERS) == sampling | penalties | running | {"draft_num_predict"}
