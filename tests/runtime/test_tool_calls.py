"""Tools that the model may call or not: a model whose logits follow a script, everything after them as it is."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.answer import Answer
from borealis_gguf.runtime.events import Chosen, Event, Finished, Options, Text, Tool, ToolCall, Usage
from borealis_gguf.runtime.llama.engine import BatchToken
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.prompting.tool_calls import ToolCallParser

from ..helpers.asking import local, messages

TOWN = {"type": "object", "properties": {"stad": {"enum": ["Bodø", "Oslo"]}}, "required": ["stad"]}
WEATHER = Tool("vaer", "Været eit stad", TOWN)
CLOCK = Tool("klokka")
BODO = '{"name": "vaer", "arguments": {"stad": "Bodø"}}'
Says = Callable[[str], Answer]


@pytest.fixture(scope="module")
def model(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, context=512, threads=1, sampling={"temperature": 0.0}) as loaded:
        yield loaded


@pytest.fixture
def says(model: Model, monkeypatch: pytest.MonkeyPatch) -> Says:
    """The answer of a model that wants to say `text`, with two tools it may call."""
    engine = local(model).engine
    decode = engine.decode
    end = next(id for id in range(engine.n_vocab) if engine.is_end(id))

    def answer(text: str) -> Answer:
        script = iter([*engine.tokenize(text, special=False), *[end] * 500])

        def scripted(cells: Sequence[BatchToken]) -> bool:
            done = decode(cells)
            if done and cells[-1].logits:
                row = engine.logits_at(len(cells) - 1)  # llama.cpp's own memory
                row[:] = 0
                row[next(script)] = 50
            return done

        monkeypatch.setattr(engine, "decode", scripted)
        return model.chat(messages("Hei"), Options(tools=[CLOCK, WEATHER], max_tokens=200))

    return answer


@pytest.mark.parametrize(
    "said",
    [BODO, f"\n{BODO}", f" \n\n\t {BODO}", f"```json\n{BODO}\n```", f"\n```\n{BODO}\n```\n", f"```json{BODO}```"],
)
def test_a_model_that_may_call_calls(says: Says, said: str) -> None:
    call, last = says(said)
    assert isinstance(call, ToolCall) and (call.name, json.loads(call.arguments)) == ("vaer", {"stad": "Bodø"})
    assert isinstance(last, Finished) and last.reason == "tool_calls"


@pytest.mark.parametrize(
    "said",
    [
        "Ja, i dag.",
        "\n  Ja.",
        f"Eg spør: {BODO}",
        "```python\nprint({})\n```",
        "```json\n[1]\n```",
        '```json\n{"name": "vaer"}\n```',
        '```json\n{"name": ["vaer"], "arguments": {}}\n```',
        '```json\n{"name": "regn", "arguments": {}}\n```',
        '```json\n{"name": "vaer", "arguments": "x"}\n```',
        f"```json\n{BODO}\n{BODO}\n```",
        "``",
        " \n",
    ],
)
def test_what_is_no_call_is_text(says: Says, said: str) -> None:
    answer = says(said)
    assert answer.text() == said
    assert answer.calls == [] and answer.finished is not None and answer.finished.reason == "stop"


def test_text_streams_once_it_is_no_call(says: Says) -> None:
    pieces = [event.text for event in says("\n```python\nprint(1)") if isinstance(event, Text)]
    assert pieces[0].startswith("\n```p") and len(pieces) > 3


@pytest.mark.parametrize("blank", ["", "\n"])
@pytest.mark.parametrize(
    "said", ['{"name": "vaer", "arguments": {"stad": "Tromsø', f"{BODO} og så", '{"name": "vaer"}']
)
def test_the_grammar_holds_a_call_to_its_schema(says: Says, blank: str, said: str) -> None:
    """The model wants another town, to go on talking, to be done too early."""
    call, last = says(blank + said)
    assert isinstance(call, ToolCall) and call.name == "vaer"
    assert json.loads(call.arguments) in ({"stad": "Bodø"}, {"stad": "Oslo"})
    assert isinstance(last, Finished) and last.reason == "tool_calls"


def read(pieces: Sequence[Text], tools: Sequence[Tool] = (WEATHER,)) -> list[Event]:
    calls = ToolCallParser(Options(tools=tools))
    return [*filter(None, map(calls.push, pieces)), *calls.end()]


def test_probabilities_of_what_was_kept_back_are_told() -> None:
    tokens = [Chosen(n, text.encode(), -0.5) for n, text in enumerate(["\n", "`", "", "a", "b"])]
    pieces = [Text(token.data.decode(), (token,)) for token in tokens]
    assert read(pieces) == [Text("\n`a", tuple(tokens[:4])), pieces[4]]
    assert read(pieces[:2]) == [Text("\n`", tuple(tokens[:2]))]
    assert read(pieces, tools=()) == pieces
    deep = [Text('```{"name": "vaer", "arguments": '), Text("[" * 100_000)]
    assert read(deep) == [Text(deep[0].text + deep[1].text)]


def test_a_call_cut_short_is_text() -> None:
    answer = Answer(Options(tools=[WEATHER]))
    for event in (Text("\n"), Text('{"name": "va'), Finished("length", Usage())):
        answer.push(event)
    assert list(answer) == [Text('\n{"name": "va'), Finished("length", Usage())]


@pytest.mark.parametrize("choice", ["auto", "required", "vaer"])
def test_tools_and_a_schema_are_not_taken_together(model: Model, choice: str) -> None:
    schema = {"type": "object", "properties": {"name": {"const": "vaer"}, "arguments": TOWN}}
    asked = Options(tools=[WEATHER], tool_choice=choice, schema=schema, max_tokens=100)
    with pytest.raises(InvalidInput, match="tools and a schema for the answer cannot be asked for together"):
        model.chat(messages("Hei"), asked)


def test_a_schema_goes_with_tools_that_are_not_offered(model: Model) -> None:
    schema = {"const": {"name": "vaer", "arguments": {}}}
    answer = model.chat(messages("Hei"), Options(tools=[WEATHER], tool_choice="none", schema=schema, max_tokens=100))
    assert json.loads(answer.text()) == schema["const"] and answer.calls == []
