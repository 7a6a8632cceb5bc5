"""Continuous batching, shared prefixes, cancelling: every answer equals that of the same request alone."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from borealis_gguf.errors import Busy, InvalidInput
from borealis_gguf.runtime.events import Chosen, Finished, Options, Text, Tool, ToolCall
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.scheduling.slots import common_prefix

from ..helpers.asking import generate, local, messages

GREEDY = {"temperature": 0.0}
STORY = "".join(f"{n}. Det bur {n * 37} menneske i bygda nummer {n * n}, og dei likar å fiske. " for n in range(1, 80))


@pytest.fixture(scope="module")
def fresh(nano_q8: Path) -> Iterator[Model]:
    """A model with one slot, which `alone` clears before every request."""
    with load(nano_q8, sampling=GREEDY, batch_invariant=True) as model:
        yield model


@pytest.fixture
def shared(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, sampling=GREEDY, parallel=3) as model:
        yield model


def told(model: Model, ids: list[int], count: int = 8) -> tuple[list[Chosen], int]:
    """The tokens of a greedy answer, and how many of the prompt were in the KV cache."""
    answer = model.complete(ids, Options(max_tokens=count, logprobs=4))
    chosen = [each for event in answer if isinstance(event, Text) for each in event.logprobs]
    assert answer.finished is not None
    return chosen, answer.finished.usage.cached_tokens


def alone(fresh: Model, ids: list[int], count: int = 8) -> list[Chosen]:
    inside = local(fresh)
    inside._scheduler.call(lambda: inside._scheduler.slots.clear(inside._scheduler.slots.all[0]))
    chosen, cached = told(fresh, ids, count)
    assert cached == 0
    return chosen


def same(ours: list[Chosen], theirs: list[Chosen]) -> None:
    """The same tokens with the same probabilities, to the last bit."""
    assert ours == theirs != []


def prompt(model: Model, length: int, end: str = "") -> list[int]:
    ids = [*model.tokenize(STORY)[: length - 1], *model.tokenize(end)]
    return [2, *ids]


def test_a_prefix_is_computed_once(shared: Model, fresh: Model) -> None:
    """1000 tokens, then other endings, longer and shorter ones, with an answer that leaves the windows (128) behind."""
    assert local(shared).engine.window == 128
    first, cached = told(shared, prompt(shared, 1000, " Hei"), 300)
    assert cached == 0 and len(first) > 0
    for length, end, least in ((1000, " Nei", 999), (1000, " Hei", 1000), (1400, " Ja", 1000), (1000, " Nei", 1000)):
        ids = prompt(shared, length, end)
        chosen, cached = told(shared, ids)
        assert least <= cached < len(ids)
        same(chosen, alone(fresh, ids))


def test_lost_windows_are_computed_again_or_restored(nano_q8: Path, fresh: Model) -> None:
    """With one slot, tokens before the windows must be computed again, unless there is a checkpoint."""
    with load(nano_q8, sampling=GREEDY, batch_invariant=True) as model:
        told(model, prompt(model, 300, " Hei"), 8)
        long = prompt(model, 1600, " Ja")
        told(model, long, 8)
        slot = local(model)._scheduler.slots.all[0]
        assert sorted(slot.checkpoints)[-1] == len(long)
        again = prompt(model, 1600, " Nei")
        chosen, cached = told(model, again)
        assert cached >= 1500
        same(chosen, alone(fresh, again))
        middle = prompt(model, 700, " Nei")
        chosen, cached = told(model, middle)
        assert cached == 0 or cached in slot.checkpoints
        same(chosen, alone(fresh, middle))


def test_a_checkpoint_is_restored(nano_q8: Path, fresh: Model) -> None:
    with load(nano_q8, sampling=GREEDY, batch_invariant=True) as model:
        ids = prompt(model, 600, " Hei")
        answer, _ = told(model, ids, 900)
        slot = local(model)._scheduler.slots.all[0]
        if len(answer) < 700:  # it ended early: go on with more of the story
            told(model, [*ids, *(each.id for each in answer), *model.tokenize(STORY)[:900]], 4)
        assert local(model).engine.first_position(0) > len(ids) - 128
        chosen, cached = told(model, [*ids, *model.tokenize(" Kva")])
        assert cached == len(ids) and cached in slot.checkpoints
        same(chosen, alone(fresh, [*ids, *model.tokenize(" Kva")]))


def test_answers_in_one_batch_are_those_made_alone(shared: Model, fresh: Model) -> None:
    prompts = [prompt(shared, 40 + 90 * n, f" {n}") for n in range(8)]
    answers = [shared.complete(ids, Options(max_tokens=12, logprobs=4)) for ids in prompts]
    made = [[each for event in answer if isinstance(event, Text) for each in event.logprobs] for answer in answers]
    for ids, chosen in zip(prompts, made, strict=True):
        same(chosen, alone(fresh, ids, 12))


def test_answers_to_one_prompt_share_it_even_when_asked_at_once(shared: Model) -> None:
    ids = prompt(shared, 900)
    answers = [shared.complete(ids, Options(max_tokens=5, seed=seed)) for seed in range(3)]
    texts = [answer.text() for answer in answers]
    assert len(texts) == 3
    cached = [answer.finished.usage.cached_tokens for answer in answers if answer.finished]
    assert cached == [0, 899, 899]


def test_a_cancelled_prefill_leaves_its_tokens(nano_q8: Path, fresh: Model) -> None:
    """Also while another answer is decoded, which must not change."""
    with load(nano_q8, sampling=GREEDY, parallel=2) as model:
        other = model.complete(prompt(model, 30), Options(max_tokens=60, logprobs=4))
        chosen = list(next(other).logprobs)  # type: ignore[union-attr]
        answer = model.complete(prompt(model, 1900))
        time.sleep(0.05)
        begun = time.monotonic()
        answer.cancel()
        events = list(answer)
        assert time.monotonic() - begun < 2
        assert isinstance(events[-1], Finished) and events[-1].reason == "cancelled"
        chosen += [each for event in other if isinstance(event, Text) for each in event.logprobs]
        same(chosen, alone(fresh, prompt(model, 30), 60))
        again, _ = told(model, prompt(model, 1000, " Nei"))
        same(again, alone(fresh, prompt(model, 1000, " Nei")))
        assert model.stats()["cancelled_total"] == 1


def test_cancel_takes_at_most_one_token(nano_q8: Path) -> None:
    with load(nano_q8, seed=1) as model:
        answer = model.complete("Norge er", Options(max_tokens=2000))
        next(answer)
        waits = []

        def stop() -> None:
            waits.append(time.monotonic())
            answer.cancel()

        threading.Timer(0.05, stop).start()
        *_, last = answer
        assert time.monotonic() - waits[0] < 2
        assert isinstance(last, Finished) and last.usage.completion_tokens > 1


def test_an_answer_without_references_is_cancelled(nano_q8: Path) -> None:
    with load(nano_q8, seed=1) as model:
        next(model.complete("Norge er", Options(max_tokens=2000)))
        deadline = time.monotonic() + 5
        while model.stats()["cancelled_total"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert model.stats()["cancelled_total"] == 1


def test_a_full_queue_is_busy(nano_q8: Path) -> None:
    with load(nano_q8, seed=1, max_queue=2) as model:
        answers = []
        with pytest.raises(Busy, match=r"[23] requests are waiting already"):
            while len(answers) < 6:
                answers.append(model.complete("Norge er", Options(max_tokens=300)))
        assert 3 <= len(answers) < 6


def test_many_threads_at_once(nano_q8: Path) -> None:
    with load(nano_q8, parallel=3, context=256) as model:
        expected = {seed: generate(model, "Norge er", raw=True, seed=seed, max_tokens=12) for seed in range(6)}
        wrong: list[str] = []

        def work(seed: int) -> None:
            for _ in range(3):
                text = generate(model, "Norge er", raw=True, seed=seed, max_tokens=12)
                wrong.extend([text] if text != expected[seed] else [])

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2, 3], [1, 2]) == 2
    assert common_prefix([1, 2, 9, 4, 5], [1, 2, 8, 4, 5]) == 2
    left = list(range(1000))
    for at in (0, 1, 499, 500, 998, 999):
        right = list(left)
        right[at] = -1
        assert common_prefix(left, right) == at


SCHEMA = {
    "type": "object",
    "properties": {"by": {"type": "string", "maxLength": 12}, "fylke": {"enum": ["Oslo", "Møre og Romsdal"]}},
    "required": ["by", "fylke"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_answers_follow_a_schema(shared: Model, seed: int) -> None:
    options = Options(schema=SCHEMA, seed=seed, sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0}, max_tokens=200)
    found = json.loads(shared.chat(messages("Fortel om ein by."), options).text())
    assert found.keys() == {"by", "fylke"}
    assert len(found["by"].replace("\ufffd", "")) <= 12 and found["fylke"] in ("Oslo", "Møre og Romsdal")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": {"type": "string"}, "minItems": 10**9}, "minItems 1000000000 is not within"),
        ({"$ref": "https://example.org/x.json"}, "cannot be followed"),
        ({"$ref": "#"}, "cannot be followed|cannot follow it|refers to itself"),
        ({"type": "string", "pattern": "("}, "cannot be followed|cannot follow it"),
        ({"type": "nonsense"}, "cannot be followed"),
        ({"type": "string", "pattern": '^a"b$'}, "a pattern with a quote"),
        ({"enum": ["x" * 70_000]}, "65536 are the most"),
    ],
)
def test_schemas_that_cannot_be_followed(shared: Model, schema: dict, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        shared.chat(messages("Hei"), Options(schema=schema))
    assert generate(shared, "Hei", max_tokens=2) != ""


def test_a_deep_schema(shared: Model) -> None:
    schema: dict = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidInput, match="nested deeper than 32"):
        shared.chat(messages("Hei"), Options(schema=schema))


@pytest.mark.parametrize("pattern", ["^[^x]{3,9}$", "^.{4}$", "^[A-ZÆØÅ][a-zæøå]{1,9} [0-9]{2}$"])
def test_patterns(shared: Model, pattern: str) -> None:
    schema = {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 3, "maxItems": 3}
    options = Options(schema=schema, seed=1, sampling={"temperature": 2.0, "top_k": 0, "top_p": 1.0}, max_tokens=400)
    answer = shared.chat(messages("Hei"), options)
    found = json.loads(answer.text())
    assert len(found) == 3 and all(re.search(pattern, text) for text in found if "\ufffd" not in text)


WEATHER = Tool(
    "vaer", "Været eit stad", {"type": "object", "properties": {"stad": {"enum": ["Bodø"]}}, "required": ["stad"]}
)
CLOCK = Tool("klokka")


def test_tools(shared: Model) -> None:
    *_, call, last = shared.chat(messages("Hei"), Options(tools=[WEATHER, CLOCK], tool_choice="vaer", max_tokens=200))
    assert isinstance(call, ToolCall) and (call.name, json.loads(call.arguments)) == ("vaer", {"stad": "Bodø"})
    assert isinstance(last, Finished) and last.reason == "tool_calls"
    answer = shared.chat(messages("Hei"), Options(tools=[WEATHER], max_tokens=10))
    assert not answer.text().startswith("{") and answer.calls == []
    with pytest.raises(InvalidInput, match="'regn' is none of auto, none, required and no tool's name"):
        shared.chat(messages("Hei"), Options(tools=[WEATHER], tool_choice="regn"))
    conversation = shared.conversation(options=Options(tools=[WEATHER], tool_choice="required", max_tokens=100))
    conversation.send("Korleis er vêret?").text()
    (made,) = conversation.messages[-1]["tool_calls"]
    with pytest.raises(InvalidInput, match=r"results for \['x'\], but the model asked for"):
        conversation.reply({"x": "sol"})
    conversation.reply({made["id"]: "sol"}, options=Options(max_tokens=5)).text()
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]


def test_stop_texts(shared: Model) -> None:
    whole = generate(shared, prompt_text(), raw=True, max_tokens=40)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    answer = shared.complete(prompt_text(), Options(max_tokens=40, stop=["finst ikkje", stop]))
    assert answer.text() == whole[: whole.index(stop)]
    assert answer.finished is not None and answer.finished.reason == "stop"
    with pytest.raises(InvalidInput, match="at most 16 texts, none of them empty"):
        shared.complete("x", Options(stop=[""]))


def prompt_text() -> str:
    return STORY[:200]


def test_logprobs_are_probabilities(shared: Model) -> None:
    (first, *_), _ = told(shared, prompt(shared, 50))
    assert [c.logprob for c in first.top] == sorted((c.logprob for c in first.top), reverse=True)
    assert first.top[0].id == first.id and first.top[0].logprob == first.logprob < 0
    every = next(shared.complete(prompt(shared, 50), Options(max_tokens=1, logprobs=64)))
    assert isinstance(every, Text)
    assert 0.5 < sum(2.718281828**c.logprob for c in every.logprobs[0].top) <= 1.0001


def test_embeddings(shared: Model) -> None:
    vectors, count = shared.embed(["Oslo er hovudstaden i Noreg.", "Oslo er hovedstaden i Norge.", "x = y + 1"])
    assert vectors.shape == (3, 256) and vectors.dtype == "float32" and count > 10
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert far < near < 1.0001
    assert abs((vectors**2).sum(axis=1) - 1).max() < 1e-5
    with pytest.raises(InvalidInput, match=r"a text of \d+ tokens; 1 to 512"):
        shared.embed(["x " * 3000])
