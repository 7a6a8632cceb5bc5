"""Whatever raises in the engine's thread: who caused it gets the error, the others their answers, and nobody waits."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.errors import BorealisError, EngineDied
from borealis_gguf.runtime.events import Event, Finished, GenerationRequest, Options, Text
from borealis_gguf.runtime.llama.engine import Engine
from borealis_gguf.runtime.llama.sampler import Sampler
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.scheduling.slots import SlotPool

from ..helpers.asking import generate, local
from ..helpers.serving import until
from ..helpers.stepping import between_steps, elsewhere
from .test_broken_process import Later, raised_by
from .test_image_encoder import look, slow
from .test_image_encoder import small as small

PROMPT = "Norge er"
RAISED = [ValueError("odd"), SystemExit(3), KeyboardInterrupt(), StopIteration(), BorealisError("odd")]


@pytest.fixture
def model(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, context=512, threads=1, parallel=2, sampling={"temperature": 0.0}) as loaded:
        yield loaded
        assert local(loaded)._scheduler._thread.is_alive()
        assert raised_by(lambda: generate(loaded, PROMPT, raw=True, max_tokens=2)) is None
        assert raised_by(lambda: local(loaded)._scheduler.call(int)) is None
        assert not any(slot.busy for slot in local(loaded)._scheduler.slots.all)


class Receiver:
    """Takes the events of an answer, and raises at those of the types `bad`."""

    def __init__(self, error: BaseException, *bad: type) -> None:
        self.error, self.bad = error, bad
        self.events: list[Event | BaseException] = []
        self.ended = threading.Event()

    def __call__(self, event: Event | BaseException) -> None:
        self.events.append(event)
        if not isinstance(event, Text):
            self.ended.set()
        if isinstance(event, self.bad):
            raise self.error


def start(model: Model, receiver: Receiver, count: int | None = 20, **options: Any) -> Callable[[], None]:
    request = GenerationRequest(PROMPT, True, Options(max_tokens=count, **options))
    return local(model).start(request, receiver)


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_receiver_that_raises(model: Model, error: BaseException) -> None:
    """At a text, at the last event, and at the error that it then gets."""
    expected = generate(model, PROMPT, raw=True, max_tokens=20)
    for bad in ((Text,), (Finished,), (Text, BorealisError)):
        receiver = Receiver(error, *bad)
        other = model.complete(PROMPT, Options(max_tokens=20))
        start(model, receiver)
        assert receiver.ended.wait(10)
        assert raised_by(other.text) is None and other.shown == expected
        last = receiver.events[-1]
        assert isinstance(last, Finished if bad == (Finished,) else BorealisError)
        assert isinstance(last, Finished) or repr(error) in str(last)
        assert sum(not isinstance(event, Text) for event in receiver.events) == 1


def test_a_receiver_that_raises_when_it_is_cancelled(model: Model) -> None:
    """Text that might be a stop text is held back until then."""
    receiver = Receiver(SystemExit(3), Text, Finished, BorealisError)
    cancel = start(model, receiver, None, stop=["§" * 500])
    with between_steps(local(model), lambda _: None):
        assert raised_by(cancel) is None
    assert receiver.ended.wait(10)


@pytest.mark.parametrize(
    ("method", "error"),
    [*((method, error) for method in ("sample", "accept_prompt") for error in RAISED), ("close", RAISED[0])],
    ids=repr,
)
def test_a_sampler_that_raises(
    model: Model, monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException
) -> None:
    expected = generate(model, PROMPT, raw=True, max_tokens=20)
    broken, works = [], getattr(Sampler, method)

    def fail(self: Sampler, *args: Any) -> Any:
        if not broken:
            broken.append(self)
        if self in broken:
            raise error
        return works(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, method, fail)
        first, other = (model.complete(PROMPT, Options(max_tokens=20)) for _ in range(2))
        ends = [raised_by(first.text), raised_by(other.text)]
        if method == "close":
            assert ends == [None, None]
        else:
            failed = [end for end in ends if end is not None]
            assert len(failed) == 1 and isinstance(failed[0], BorealisError)
            assert str(failed[0]) in (f"the engine failed: {error!r}", str(error))
            assert expected in (first.shown, other.shown)
    for sampler in broken:
        works(sampler) if method == "close" else None


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_call_that_raises(model: Model, error: BaseException) -> None:
    def fail() -> None:
        raise error

    answer = model.complete(PROMPT, Options(max_tokens=20))
    assert type(raised_by(lambda: local(model)._scheduler.call(fail))) is type(error)
    assert raised_by(answer.text) is None


def test_calls_are_not_lost_when_an_answer_cannot_be_ended(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both come to the engine's thread in the same moment."""
    scheduler, calls = local(model)._scheduler, []
    cancelled, close = [], Sampler.close

    def fail(self: Sampler) -> None:
        if cancelled:
            raise RuntimeError("odd")
        close(self)

    def act(_: int) -> None:
        if not calls:
            elsewhere(first.cancel)
            cancelled.append(True)
            calls.append(Later(lambda: scheduler.call(lambda: "done")))
            until(lambda: len(scheduler._calls) == 1)

    first = model.complete(PROMPT, Options(max_tokens=400))
    next(first)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "close", fail)
        with between_steps(local(model), act):
            until(lambda: bool(calls))
            assert calls[0].end() == "done"
    assert raised_by(first.text) is None


def test_a_prompt_that_cannot_be_placed_ends_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, failed = SlotPool.acquire, []

    def fail(self: SlotPool, tokens: Any) -> Any:
        if not failed:
            failed.append(True)
            raise RuntimeError("odd")
        return acquire(self, tokens)

    other = model.complete(PROMPT, Options(max_tokens=200))
    next(other)
    with monkeypatch.context() as patch:
        patch.setattr(SlotPool, "acquire", fail)
        error = raised_by(lambda: generate(model, PROMPT, raw=True, max_tokens=2))
    assert str(error) == "the engine failed: RuntimeError('odd')"
    assert raised_by(other.text) is None


def test_a_prompt_that_cannot_be_compared_ends_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, failed = local(model)._scheduler, []
    compare = scheduler._should_wait

    def fail(job: Any) -> bool:
        if not failed:
            failed.append(job)
        if job in failed:
            raise RuntimeError("odd")
        return compare(job)

    monkeypatch.setattr(scheduler, "_should_wait", fail)
    assert str(raised_by(lambda: generate(model, PROMPT, raw=True, max_tokens=2))).endswith("RuntimeError('odd')")
    assert raised_by(lambda: generate(model, PROMPT, raw=True, max_tokens=2)) is None


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_step_that_raises_ends_the_running_answers(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> bool:
        raise error

    answers = [model.complete(PROMPT, Options(max_tokens=400)) for _ in range(2)]
    until(lambda: all(answer.shown for answer in answers))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "decode", fail)
        for answer in answers:
            assert str(raised_by(answer.text)) in (f"the engine failed: {error!r}", str(error))


@pytest.mark.parametrize("error", [RuntimeError("no way back"), SystemExit(3)], ids=repr)
def test_an_unusable_engine_tells_all_that_wait_and_all_that_come(
    nano_q8: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Where not even the cache can be cleared after an error."""
    with load(nano_q8, context=512, threads=1, parallel=1) as model:
        scheduler, calls = local(model)._scheduler, []

        def fail(*_: Any) -> Any:
            if not calls:
                calls.append(Later(lambda: scheduler.call(int)))
                until(lambda: len(scheduler._calls) == 1)
            raise error

        answers = [model.complete(PROMPT, Options(max_tokens=400)) for _ in range(3)]
        next(answers[0])
        monkeypatch.setattr(SlotPool, "clear", fail)
        monkeypatch.setattr(Engine, "decode", fail)
        errors = [raised_by(answer.text) for answer in answers]
        assert isinstance(errors[0], BorealisError)
        told = "the engine failed and cannot go on: "
        assert all(isinstance(each, EngineDied) and told in str(each) for each in errors[1:])
        until(lambda: bool(calls))
        assert isinstance(calls[0].end(), EngineDied)
        for late in (lambda: generate(model, PROMPT, raw=True), lambda: model.embed(["x"]), lambda: answers[0].text()):
            assert isinstance(raised_by(late), BorealisError)
        assert model.stats()["up"] == 0
        assert raised_by(model.close) is None


def test_images_that_cannot_be_attached_end_their_answer(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow(small) as (model, gate):
        scheduler = local(model)._scheduler
        gate.open.set()

        def fail(*_: Any) -> None:
            raise SystemExit(3)

        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "attach_images", fail)
            error = raised_by(look(model, "exact.png").text)
            assert str(error) == "looking at an image failed: SystemExit(3)"
        assert raised_by(look(model, "exact.png").text) is None


def test_images_that_no_thread_can_encode_end_their_answer(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow(small) as (model, gate):
        gate.open.set()

        def fail(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(local(model).image_encoder._thread, "submit", fail)
            error = raised_by(look(model, "exact.png").text)
            assert str(error) == "looking at an image failed: can't start new thread"
        assert raised_by(look(model, "exact.png").text) is None


def test_a_receiver_that_raises_while_its_images_fail(small: Path) -> None:
    with slow(small) as (model, gate):
        gate.error = RuntimeError("burnt")
        receiver = Receiver(SystemExit(3), BorealisError)
        answer = look(model, "exact.png")
        (job,) = local(model)._scheduler._waiting
        job.sink = receiver
        gate.open.set()
        assert receiver.ended.wait(10)
        gate.error = None
        assert raised_by(look(model, "exact.png").text) is None
        answer.cancel()
