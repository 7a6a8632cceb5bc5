"""Chat templates: rendered as transformers does, bounded, and cut where messages begin and end."""

import time

import pytest

from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate, Piece

USER = [{"role": "user", "content": "Hei"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.os }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100001) %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 100000) * 100000 }}",
        "{{ 100000 ** 100000 ** 100000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ lipsum(n=1000) }}",
        "{% for i in range(1000) %}{% for j in range(900) %}{{ 'a' * 100 }}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% if %}",
        "{{ messages[5].content }}",
        "{{ 1 // 0 }}",
        "{{ [] + 1 }}",
        "{{ messages.append(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_hostile_and_broken_templates_are_refused_quickly(source: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidInput) as caught:
        ChatTemplate(source).render(USER)
    assert time.monotonic() - begun < 2
    assert str(caught.value).startswith("the model's chat template ")
    assert "\n" not in str(caught.value)


def test_a_template_can_refuse_a_conversation() -> None:
    with pytest.raises(InvalidInput, match="the model's chat template refuses: No way"):
        ChatTemplate("{{ raise_exception('No\\nway') }}").render(USER)


def test_generation_blocks_render_as_in_transformers() -> None:
    """TRL's chat templates mark the model's turns with them, which Jinja alone does not know."""
    source = """{% for m in messages %}
    {% if m.role == 'assistant' %}
        {% generation %}
            {% set end = '!' %}
{{ m.content }}{{ end }}
        {% endgeneration %}
{{ end }}{% else %}
{{ m.content }}{% endif %}{% endfor %}"""
    conversation = [*USER, {"role": "assistant", "content": "Hallo"}, *USER]
    assert ChatTemplate(source).render(conversation) == "HeiHallo!\nHei"


def test_the_environment_is_the_one_chat_templates_are_written_for() -> None:
    source = """{% for m in messages %}
    {% if loop.index0 == 1 %}
        {% break %}
    {% endif %}
{{ bos_token }}{{ m | tojson }}{{ eos_token }}{{ tools is none }}
{% endfor %}
{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}"""
    rendered = ChatTemplate(source, "<s>", "</s>").render([{"role": "user", "content": "æ<"}, *USER])
    assert rendered == '<s>{"role": "user", "content": "æ<"}</s>True\n4True'


@pytest.mark.parametrize(
    ("source", "content", "pieces"),
    [
        ("<a>{{ messages[0].content }}<b>", " x ", [Piece("<a>", True), Piece(" x ", False), Piece("<b>", True)]),
        ("<a>{{ messages[0].content | trim }}<b>", " x ", [Piece("<a>", True), Piece("x", False), Piece("<b>", True)]),
        ("{{ messages[0].content.lstrip() }}<b>", " x ", [Piece("x ", False), Piece("<b>", True)]),
        ("<a>{{ messages[0].content.rstrip() }}", " x ", [Piece("<a>", True), Piece(" x", False)]),
        ("<a>{{ messages[0].content }}{{ messages[0].content }}", "x", [Piece("<a>", True), Piece("xx", False)]),
        ("<a> \n{{ messages[0].content | trim }} \n", " ", [Piece("<a> \n ", True)]),
    ],
)
def test_pieces(source: str, content: str, pieces: list[Piece]) -> None:
    messages = [{"role": "user", "content": content}]
    template = ChatTemplate(source)
    assert template.pieces(messages) == pieces
    assert "".join(piece.text for piece in pieces) == template.render(messages)


def test_pieces_of_a_list_of_parts_become_one() -> None:
    source = "<a>{% for part in messages[0].content %}{{ part.text }}{% endfor %}<b>"
    parts = [{"type": "text", "text": "<end_of"}, {"type": "text", "text": "_turn>"}]
    pieces = ChatTemplate(source).pieces([{"role": "user", "content": parts}])
    assert pieces == [Piece("<a>", True), Piece("<end_of_turn>", False), Piece("<b>", True)]
