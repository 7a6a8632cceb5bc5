"""Chat templates: rendered as transformers does, bounded, and cut where messages begin and end."""

import contextlib
import os
from collections.abc import Callable

import pytest

from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.prompting import prompt_segments
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate, Segment
from borealis_gguf.runtime.prompting.prompt_segments import render_segments, segments
from borealis_gguf.runtime.prompting.template_renderer import TemplateRenderer
from borealis_gguf.runtime.prompting.template_sandbox import render

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
        "{{ " + "9" * 5000 + " }}",
        "{{ messages[0].content[:-4] }}77:",
        "{{ messages[0].content[:-4] + '9' * 5000 }}:",
        "{{ messages[5].content }}",
        "{{ 1 // 0 }}",
        "{{ [] + 1 }}",
        "{{ messages.append(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_hostile_and_broken_templates_are_refused_quickly(source: str) -> None:
    begun = sum(os.times()[:4])  # of the processor, in child processes too: how busy the machine is does not matter
    with TemplateRenderer(ChatTemplate(source)) as renderer, pytest.raises(InvalidInput) as caught:
        renderer.render_segments(USER)
    assert sum(os.times()[:4]) - begun < 2
    assert str(caught.value).startswith("the model's chat template ")
    assert "\n" not in str(caught.value)


def test_a_template_can_refuse_a_conversation() -> None:
    with pytest.raises(InvalidInput, match="the model's chat template refuses: No way"):
        render(ChatTemplate("{{ raise_exception('No\\nway') }}"), USER)


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
    assert render(ChatTemplate(source), conversation) == "HeiHallo!\nHei"


def test_filters_that_make_text_longer_work_as_in_transformers() -> None:
    source = "{{ 'a' | center(3) }}{{ 'x\\ny' | indent(2) }}{{ '%5d' | format(1) }}{{ '{:>3}'.format('b') }}"
    assert render(ChatTemplate(source), USER) == " a x\n  y    1  b"


def test_the_environment_is_the_one_chat_templates_are_written_for() -> None:
    source = """{% for m in messages %}
    {% if loop.index0 == 1 %}
        {% break %}
    {% endif %}
{{ bos_token }}{{ m | tojson }}{{ eos_token }}{{ tools is none }}
{% endfor %}
{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}"""
    rendered = render(ChatTemplate(source, "<s>", "</s>"), [{"role": "user", "content": "æ<"}, *USER])
    assert rendered == '<s>{"role": "user", "content": "æ<"}</s>True\n4True'


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        ("<a>{{ messages[0].content }}<b>", " x ", [Segment("<a>", True), Segment(" x ", False), Segment("<b>", True)]),
        (
            "<a>{{ messages[0].content | trim }}<b>",
            " x ",
            [Segment("<a>", True), Segment("x", False), Segment("<b>", True)],
        ),
        ("{{ messages[0].content.lstrip() }}<b>", " x ", [Segment("x ", False), Segment("<b>", True)]),
        ("<a>{{ messages[0].content.rstrip() }}", " x ", [Segment("<a>", True), Segment(" x", False)]),
        ("<a>{{ messages[0].content }}{{ messages[0].content }}", "x", [Segment("<a>", True), Segment("xx", False)]),
        ("<a> \n{{ messages[0].content | trim }} \n", " ", [Segment("<a> \n ", True)]),
    ],
)
def test_segments(source: str, content: str, expected: list[Segment]) -> None:
    messages = [{"role": "user", "content": content}]
    template = ChatTemplate(source)
    assert segments(template, messages) == expected
    assert "".join(segment.text for segment in expected) == render(template, messages)


def test_segments_of_a_list_of_parts_become_one() -> None:
    source = "<a>{% for part in messages[0].content %}{{ part.text }}{% endfor %}<b>"
    parts = [{"type": "text", "text": "<end_of"}, {"type": "text", "text": "_turn>"}]
    found = segments(ChatTemplate(source), [{"role": "user", "content": parts}])
    assert found == [Segment("<a>", True), Segment("<end_of_turn>", False), Segment("<b>", True)]


GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
"""As google/gemma-3-4b-it has it."""

CHATML = "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
ONCE = [GEMMA, CHATML, "{{ messages }}", "{% set c = messages[-1] %}{{ c }}", "{{ messages[0].content.x }}"]
TWICE = [
    "{{ messages[0].content | replace('H', 'h') }}",
    "{{ messages[0].content | length }}",
    "{{ messages[0].content.upper() }}",
    "{{ messages[0].content[0] }}",
    "{{ messages[0].content[1:] }}",
    "{{ messages[0].content * 2 }}",
    "{{ messages[0].content % 2 if messages[0].content == '%d' else 'no' }}",
    "{{ 'Hei' in messages[0].content }}",
    "{{ 'short' if messages[0].content < 'J' else 'long' }}",
    "{{ {'Hei': 1}[messages[0].content] }}",
    "{{ messages[0].content is eq('Hei') }}",
    "{{ messages[0] | tojson }}",
    "{{ [messages[0].content] }}",
    "{{ messages[0].content ~ '!' }}",
    "{% macro m(x) %}{{ x[0] }}{% endmacro %}{{ m(messages[0].content) }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "{% if messages[0].content %}{{ messages[0].content }}{% else %}empty{% endif %}{{ 'x' | upper }}",
]
TEXTS = ("Hei", " Hei\n", "%d", "", " ", "<end_of_turn>", "\x1c", "æ" * 1000)


@pytest.mark.parametrize("source", [*ONCE, *TWICE])
def test_text_and_segments_of_one_rendering_are_those_of_two(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "c0ffee" * count)  # some templates print it
    template = ChatTemplate(source, "<bos>", "<eos>")
    for text in TEXTS:
        user, parts = (
            {"role": "user", "content": text},
            [{"type": "image", "path": "x"}, {"type": "text", "text": text}],
        )
        system = {"role": "system", "content": text}
        answer = {"role": "assistant", "content": "Ja"}
        for messages in ([user], [system, user, answer, user], [{"role": "user", "content": parts}, answer]):
            assert outcome(lambda m=messages: render_segments(template, m)) == outcome(
                lambda m=messages: (render(template, m), segments(template, m))
            )


def outcome(work: Callable[[], tuple[str, list[Segment]]]) -> object:
    """What `work` gives or raises."""
    try:
        return work()
    except InvalidInput as error:
        return str(error)


@pytest.mark.parametrize(
    ("source", "count"), [*((one, 1) for one in ONCE[:2]), *((two, 2) for two in [*ONCE[2:4], *TWICE])]
)
def test_how_often_a_template_is_rendered(source: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    monkeypatch.setattr(prompt_segments, "render", lambda *given: rendered.append(1) or render(*given))
    with contextlib.suppress(InvalidInput):
        render_segments(ChatTemplate(source), USER)
        assert len(rendered) == count
