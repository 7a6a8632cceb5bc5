"""TEMPLATE in a real Go engine (golden answers), the model's own Jinja, and our own words: all three must agree."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.modelfiles.gemma import TEMPLATE, render_gemma
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
from borealis_gguf.runtime.prompting.template_sandbox import render

from ..helpers.paths import DATA

GOLDEN = json.loads((DATA / "gemma_go.json").read_text(encoding="utf-8"))
TURNS = st.lists(st.text(st.sampled_from(" \n\t\x1fabø😀<>{}"), max_size=12), max_size=6)


@pytest.fixture(scope="module")
def jinja(nano_q8: Path) -> ChatTemplate:
    return ChatTemplate(read_gguf(nano_q8).value("tokenizer.chat_template"), bos_token="<bos>")


def test_golden_answers_are_of_the_template_we_ship() -> None:
    assert GOLDEN["template"] == TEMPLATE, "run tests/generate/go_golden.py"
    assert len(GOLDEN["conversations"]) == len(GOLDEN["rendered"]) == 125


def test_go_renders_what_the_models_jinja_renders(jinja: ChatTemplate) -> None:
    for messages, rendered in zip(GOLDEN["conversations"], GOLDEN["rendered"], strict=True):
        assert render(jinja, messages) == "<bos>" + rendered


def test_our_words_render_what_go_renders() -> None:
    for messages, rendered in zip(GOLDEN["conversations"], GOLDEN["rendered"], strict=True):
        assert render_gemma(messages) == rendered


@given(system=st.none() | st.text(max_size=8), turns=TURNS)
def test_our_words_render_what_the_models_jinja_renders(
    jinja: ChatTemplate, system: str | None, turns: list[str]
) -> None:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    if system is not None and messages:
        messages.insert(0, {"role": "system", "content": system})
    assert render(jinja, messages) == "<bos>" + render_gemma(messages)


def test_a_conversation_in_full() -> None:
    messages = [
        {"role": "system", "content": "Svar på norsk."},
        {"role": "user", "content": "  Hei!\n"},
        {"role": "assistant", "content": "Hallo"},
        {"role": "user", "content": "Takk"},
    ]
    assert render_gemma(messages) == (
        "<start_of_turn>user\nSvar på norsk.\n\nHei!<end_of_turn>\n<start_of_turn>model\nHallo<end_of_turn>\n"
        "<start_of_turn>user\nTakk<end_of_turn>\n<start_of_turn>model\n"
    )


def test_template_leaves_bos_to_ollama() -> None:
    assert "<bos>" not in TEMPLATE
    assert not any("<bos>" in rendered for rendered in GOLDEN["rendered"])
