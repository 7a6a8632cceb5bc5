"""Cancelling aborts a computation without changing other answers. Time is counted in llama.cpp's steps."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf.runtime.events import Chosen, Event, Finished, GenerationRequest, Options, Text
from borealis_gguf.runtime.llama.engine import BatchToken, Engine
from borealis_gguf.runtime.llama.limits import BATCH
from borealis_gguf.runtime.model import Model, load

from ..helpers.asking import local
from ..helpers.stepping import between_steps, elsewhere

GREEDY = {"temperature": 0.0}
WHOLE = [BatchToken(0, n, 300 + n, n == BATCH - 1) for n in range(BATCH)]
"""A batch of the largest size."""


@pytest.fixture(scope="module")
def engine(nano_q8: Path) -> Iterator[Engine]:
    engine = Engine(nano_q8, context=1024, threads=1, extra_buffers=False, gpu_layers=0)
    yield engine
    engine.close()


@pytest.fixture
def shared(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, sampling=GREEDY, parallel=3, threads=1) as model:
        yield model


def prompt(seed: int, length: int) -> list[int]:
    return [2, *(300 + (seed * 7919 + n * n) % 3000 for n in range(length - 1))]


class Asked:
    """An answer's events, as the scheduler emits them."""

    def __init__(self, model: Model, ids: list[int], count: int | None = None) -> None:
        self.events: list[Event | BaseException] = []
        self.done = threading.Event()
        options = Options(max_tokens=count, logprobs=2)
        self.cancel = local(model).start(GenerationRequest(ids, True, options), self.take)

    def take(self, event: Event | BaseException) -> None:
        self.events.append(event)
        if not isinstance(event, Text):
            self.done.set()

    def chosen(self) -> list[Chosen]:
        """Its tokens, once it is finished."""
        assert self.done.wait(120)
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return [each for event in self.events if isinstance(event, Text) for each in event.logprobs]

    @property
    def reason(self) -> str | None:
        last = self.events[-1] if self.events else None
        return last.reason if isinstance(last, Finished) else None


def alone(model: Model, ids: list[int], count: int) -> list[Chosen]:
    inside = local(model)
    inside._scheduler.call(lambda: [inside._scheduler.slots.clear(each) for each in inside._scheduler.slots.all])
    return Asked(model, ids, count).chosen()


def steps(engine: Engine) -> list[int]:
    """The numbers of all steps of a full batch."""
    seen: list[int] = []
    engine.truncate(0, 0)
    with between_steps(engine, seen.append):
        assert engine.decode(WHOLE)
    return seen


def test_abort_ends_a_computation_at_that_step(engine: Engine) -> None:
    every = steps(engine)
    assert every == list(range(len(every))) and len(every) > 100
    whole = engine.logits_at(-1).copy()
    for place in (0, 1, len(every) // 2, len(every) - 1):
        engine.truncate(0, 0)
        seen: list[int] = []

        def act(number: int, place: int = place, seen: list[int] = seen) -> None:
            seen.append(number)
            if number == place:
                engine.abort()

        with between_steps(engine, act):
            assert not engine.decode(WHOLE)
        assert seen == every[: place + 1]
        assert engine.first_position(0) == -1  # as it was before
        engine.abort(False)
        assert engine.decode(WHOLE)
        assert np.array_equal(engine.logits_at(-1), whole)


def test_abort_from_another_thread(engine: Engine) -> None:
    """Without the callback of `between_steps`: batches are computed one after another until one is aborted."""
    begun, made = threading.Event(), []

    def work() -> None:
        for _ in range(40):
            engine.truncate(0, 0)
            begun.set()
            made.append(engine.decode(WHOLE))
            if not made[-1]:
                return

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    engine.abort()
    thread.join()
    engine.abort(False)
    assert made[-1] is False and len(made) <= 2
    assert engine.first_position(0) == -1


def test_cancel_during_prefill(shared: Model) -> None:
    """In its second batch: the tokens of the first stay in the slot, the second is aborted."""
    inside = local(shared)
    slot = inside._scheduler.slots.all[0]
    seen: list[int] = []

    def act(number: int) -> None:
        if len(slot.tokens) == BATCH:
            seen.append(number)
            if len(seen) == 50:
                elsewhere(answer.cancel)

    with between_steps(inside, act):
        answer = Asked(shared, prompt(1, 1900))
        assert answer.chosen() == []
    assert answer.reason == "cancelled" and len(seen) == 50
    assert len(slot.tokens) == BATCH and shared.stats()["kv_tokens"] == BATCH
    assert inside.engine.first_position(0) >= 0


def test_cancel_during_decode_while_others_prefill(shared: Model) -> None:
    """During a step that other answers share: the step is completed, and their tokens do not change."""
    inside = local(shared)
    slots = inside._scheduler.slots.all
    asked: dict[str, Asked] = {}
    told: list[tuple[str | None, int]] = []

    def act(number: int) -> None:
        if not told and "reader" in asked and sum(slot.busy and len(slot.tokens) >= 256 for slot in slots):
            writer = asked["writer"]
            before = len(writer.events)
            elsewhere(writer.cancel)
            told.append((writer.reason, len(writer.events) - before))
            assert not inside.engine._abort.value

    with between_steps(inside, act):
        writer = asked["writer"] = Asked(shared, prompt(2, 20), 2000)
        other = Asked(shared, prompt(3, 30), 60)
        while not (writer.events and other.events):
            writer.done.wait(0.001)
        asked["reader"] = Asked(shared, prompt(4, 1500), 8)
        written, read = other.chosen(), asked["reader"].chosen()
        assert writer.chosen() != []
    assert told in ([("cancelled", 1)], [("cancelled", 2)])  # with or without what was held back of the text
    count = len(writer.events)
    for ids, made, found in ((prompt(3, 30), 60, written), (prompt(4, 1500), 8, read)):
        assert found == alone(shared, ids, made) != []
    assert len(writer.events) == count


def test_a_prompt_cancelled_at_any_step_is_continued(shared: Model) -> None:
    """From the aborted batch on, also beyond the windows: the answer equals that in an empty slot."""
    ids = prompt(5, 900)
    wanted, inside = alone(shared, ids, 8), local(shared)
    scheduler, cached = inside._scheduler, []
    for place in range(5, 700, 61):
        scheduler.call(lambda: [scheduler.slots.clear(each) for each in scheduler.slots.all])
        first: list[Asked] = []

        def act(number: int, place: int = place, first: list[Asked] = first) -> None:
            if number >= place and first and not first[0].reason:
                elsewhere(first[0].cancel)

        with between_steps(inside, act):
            first.append(Asked(shared, ids, 8))
            first[0].chosen()
        again = Asked(shared, ids, 8)
        assert again.chosen() == wanted
        last = again.events[-1]
        assert isinstance(last, Finished)
        cached.append(last.usage.cached_tokens)
    assert {0, BATCH, 768} <= set(cached)


def test_cancel_while_waiting(nano_q8: Path) -> None:
    with load(nano_q8, sampling=GREEDY, threads=1, max_queue=1) as model:
        waiting: list[Asked] = []
        told: list[str | None] = []

        def act(_: int) -> None:
            if waiting and not told:
                elsewhere(waiting[0].cancel)
                told.append(waiting[0].reason)
                elsewhere(lambda: waiting.append(Asked(model, prompt(9, 20), 2)))  # there is room for it

        with between_steps(local(model), act):
            first = Asked(model, prompt(8, 900), 40)
            waiting.append(Asked(model, prompt(9, 900), 40))
            assert len(first.chosen()) == 40
        assert told == ["cancelled"] and len(waiting[0].events) == 1
        assert len(waiting[1].chosen()) == 2
        assert model.stats()["cancelled_total"] == 1 and model.stats()["waiting"] == 0


def test_cancel_from_the_event_sink(shared: Model) -> None:
    events: list[Event | BaseException] = []
    done = threading.Event()

    def take(event: Event | BaseException) -> None:
        events.append(event)
        if isinstance(event, Text):
            stop[0]()
        else:
            done.set()

    stop: list[Any] = [lambda: None]
    stop[0] = local(shared).start(GenerationRequest(prompt(10, 30), True, Options(max_tokens=50)), take)
    assert done.wait(60)
    shared.stats()
    alone(shared, prompt(10, 30), 2)
    assert [type(event) for event in events].count(Finished) == 1 and isinstance(events[-1], Finished)
