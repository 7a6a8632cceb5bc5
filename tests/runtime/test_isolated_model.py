"""A model in a child process: the same answers, and children that really crash."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf.errors import BorealisError, Busy, EngineDied, InvalidInput
from borealis_gguf.runtime.events import Candidate, Chosen, Finished, Options, Text, Tool, ToolCall, Usage
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.process.isolated_model import IsolatedModel
from borealis_gguf.runtime.process.wire_format import pack, pack_event, unpack, unpack_event

from ..helpers.asking import alone, generate, messages, stream

ASK = "Fortell om Norge."
SIGSEGV = "(SIGSEGV|SIGBUS|access violation)"
LOADING: dict[str, Any] = {
    "device": "cpu", "gpu_layers": 0, "context": 256, "parallel": 2, "threads": 2, "seed": 5, "sampling": {},
    "loras": [], "mmproj": None, "extra_buffers": None, "max_queue": None, "batch_invariant": None,
}  # fmt: skip


def child(code: str) -> list[str]:
    """The command of a child that reads the load message and runs `code`, with `send` for messages."""
    head = "import sys, json, time, os, faulthandler\nsys.stdin.readline()\n"
    send = "def send(**message): print(json.dumps(message), flush=True)\n"
    ready = "def ready(): send(ready=dict(context=9, parallel=1, vision=False, chat=True, placement=''))\n"
    return [sys.executable, "-c", head + send + ready + code]


def dying(path: Path, patch: str) -> list[str]:
    """The command of the real worker with `patch` applied to the engine."""
    code = f"""
import faulthandler, sys
sys.path[:] = {sys.path!a}
from borealis_gguf.runtime.process import model_worker
from borealis_gguf.runtime.llama.engine import Engine
decode, left = Engine.decode, [0]
{patch}
model_worker.main()
"""
    return [sys.executable, "-c", code]


@pytest.fixture(scope="module")
def model(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, seed=5, context=512, parallel=2, isolate=True) as loaded:
        yield loaded


def logprobs(model: Model) -> list[Chosen]:
    events = model.chat(messages(ASK), Options(max_tokens=3, logprobs=2))
    return [each for event in events if isinstance(event, Text) for each in event.logprobs]


def test_the_same_answers_as_in_this_process(nano_q8: Path, model: Model) -> None:
    with load(nano_q8, seed=5, context=512, parallel=2) as here:
        expected = stream(here, ASK, max_tokens=30, logprobs=2)
        raw = generate(here, "Norge er", raw=True, max_tokens=5)
        vectors, count = here.embed(["Norge", "Blåbær"])
        told = logprobs(here)
        ids = here.tokenize("blåbær på fjellet")
    assert stream(model, ASK, max_tokens=30, logprobs=2) == expected != []
    assert generate(model, "Norge er", raw=True, max_tokens=5) == raw
    theirs, same = model.embed(["Norge", "Blåbær"])
    assert np.array_equal(theirs, vectors) and same == count
    assert logprobs(model) == told != []
    assert model.tokenize("blåbær på fjellet") == ids
    assert model.detokenize(ids) == "blåbær på fjellet"
    assert (model.context, model.parallel, model.vision, model.has_template) == (512, 2, False, True)


def test_errors_reach_the_app(nano_q8: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.gguf: "):
        load(tmp_path / "nothing.gguf", isolate=True)
    with pytest.raises(InvalidInput, match="top_k"):
        load(nano_q8, sampling={"top_k": -1}, isolate=True)
    with pytest.raises(InvalidInput, match="role 'robot'"):
        model.chat([{"role": "robot", "content": "x"}])
    with pytest.raises(InvalidInput, match="shorten it"):
        model.chat(messages("x " * 1000))
    assert generate(model, ASK, max_tokens=2) != ""


def test_busy_reaches_the_app(nano_q8: Path) -> None:
    with load(nano_q8, context=256, max_queue=1, isolate=True, seed=1) as model:
        answers = [model.complete("Norge er", Options(max_tokens=200))]
        with pytest.raises(Busy, match="waiting already") as caught:
            while len(answers) < 4:
                answers.append(model.complete("Norge er", Options(max_tokens=200)))
        assert caught.value.retry_after == 1
        assert len(answers) >= 2


def test_paths_are_the_callers(nano_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "blå bær"
    folder.mkdir()
    (folder / "å.gguf").write_bytes(nano_q8.read_bytes())
    (folder / "numpy.py").write_text("raise SystemExit('a stray module was imported')", encoding="utf-8")
    monkeypatch.chdir(folder)
    assert alone(Path("å.gguf"), ASK, options={"max_tokens": 3}, seed=1) != ""


def test_progress_comes_from_the_child(nano_q8: Path) -> None:
    seen: list[float] = []
    load(nano_q8, on_progress=seen.append, isolate=True).close()
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_a_cancelled_answer_ends_at_once_and_the_next_one_runs(model: Model) -> None:
    answer = model.complete("Norge er", Options(max_tokens=200, seed=3))
    assert isinstance(next(answer), Text)
    answer.cancel()
    *_, last = answer
    assert isinstance(last, Finished) and last.reason == "cancelled" and last.usage.completion_tokens < 200
    assert generate(model, ASK, max_tokens=2) != ""


def test_asyncio(model: Model) -> None:
    async def ask(seed: int) -> str:
        async with model.complete("Norge er", Options(max_tokens=10, seed=seed)) as answer:
            return "".join([event.text async for event in answer if isinstance(event, Text)])

    async def together() -> list[str]:
        return await asyncio.gather(*(ask(seed) for seed in range(5)))

    expected = [generate(model, "Norge er", raw=True, max_tokens=10, seed=seed) for seed in range(5)]
    assert asyncio.run(together()) == expected


@pytest.mark.parametrize(("decodes", "phase"), [(0, "reading the prompt"), (4, "writing the answer")])
def test_a_crash_is_an_exception_and_the_next_request_works(
    nano_q8: Path, tmp_path: Path, decodes: int, phase: str
) -> None:
    """The first process crashes, the second does not: a file marks the crash."""
    patch = f"""
from pathlib import Path
mark = Path({str(tmp_path / "died")!a})
def die(self, cells):
    left[0] += 1
    if left[0] > {decodes} and not mark.exists():
        mark.touch()
        faulthandler._sigsegv()
    return decode(self, cells)
Engine.decode = die
"""
    model = Model(nano_q8, IsolatedModel(nano_q8, LOADING, command=dying(nano_q8, patch)))
    seen: list[str] = []
    with model:
        with pytest.raises(EngineDied, match=rf"^llama.cpp died \({SIGSEGV}\) while {phase}; [^\n]*$"):
            for event in model.chat(messages(ASK), Options(max_tokens=30)):
                assert isinstance(event, Text)
                seen.append(event.text)
        assert len(seen) <= decodes and bool(seen) == bool(decodes)
        assert len(stream(model, ASK, max_tokens=30)) > 4
        assert model.stats()["restarts_total"] == 1


@pytest.mark.skipif(os.name == "nt", reason="os.kill cannot stop a process midway on Windows")
def test_all_running_answers_fail_when_the_process_dies(nano_q8: Path) -> None:
    with load(nano_q8, context=256, parallel=2, isolate=True, seed=1) as model:
        assert isinstance(model.backend, IsolatedModel) and model.backend._worker is not None
        answers = [model.complete("Norge er", Options(max_tokens=250)) for _ in range(4)]
        next(answers[0])
        os.kill(model.backend._worker._process.pid, signal.SIGKILL)
        for answer in answers:
            with pytest.raises(EngineDied, match="SIGKILL"):
                answer.text()
        conversation = model.conversation()
        assert conversation.send("Hei", options=Options(max_tokens=3)).text() != ""


def test_a_crash_before_anything_is_read(nano_q8: Path) -> None:
    command = [sys.executable, "-c", "import faulthandler; faulthandler._sigsegv()"]
    with pytest.raises(EngineDied, match=rf"llama.cpp died \({SIGSEGV}\) while starting"):
        IsolatedModel(nano_q8, {**LOADING, "sampling": {"x" * 1_000_000: 1.0}}, command=command)


def test_a_message_truncated_by_the_crash(nano_q8: Path) -> None:
    code = "send(progress=0.5)\nprint('{\"te', end='', flush=True)\nfaulthandler._sigsegv()"
    with pytest.raises(EngineDied, match=rf"{SIGSEGV}\) while loading the model"):
        IsolatedModel(nano_q8, LOADING, command=child(code))


def test_an_assertion_of_ggml_is_quoted(nano_q8: Path) -> None:
    code = "print('x\\nggml.c:7: GGML_ASSERT(n > 0) failed\\ny', file=sys.stderr, flush=True)\nos.abort()"
    with pytest.raises(EngineDied, match=r"while starting: ggml\.c:7: GGML_ASSERT\(n > 0\) failed; "):
        IsolatedModel(nano_q8, LOADING, command=child(code))


def test_an_exit_without_a_message(nano_q8: Path) -> None:
    with pytest.raises(EngineDied, match=r"the model's process ended \(3\) while starting: ModuleNotFound"):
        IsolatedModel(nano_q8, LOADING, command=child("print('ModuleNotFound', file=sys.stderr)\nsys.exit(3)"))


def test_closing_ends_the_child(nano_q8: Path, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    code = f"ready()\nwhile True: open({str(beat)!r}, 'ab').write(b'x'); time.sleep(0.01)"
    isolated = IsolatedModel(nano_q8, LOADING, command=child(code))
    while not beat.exists():
        time.sleep(0.01)
    waiting: list[BaseException] = []

    def ask() -> None:
        try:
            isolated.tokenize("x")
        except BorealisError as error:
            waiting.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.05)
    isolated.close()
    thread.join(5)
    size = beat.stat().st_size
    time.sleep(0.2)
    assert beat.stat().st_size == size
    assert [str(error) for error in waiting] == ["the model is closed"]


def test_events_are_unpacked_as_they_were_packed() -> None:
    told = (Chosen(7, b"\xc3", -0.5, (Candidate(7, b"\xc3", -0.5), Candidate(9, b"a", -2.0))),)
    events = [
        Text("blåbær\u2028 \x00", told), Text("", ()), ToolCall("c", "vær", '{"a": 1}'),
        Finished("stop", Usage(1, 2, 3, 0.5, 0.25)),
    ]  # fmt: skip
    assert [unpack_event(unpack(pack(pack_event(event)))) for event in events] == events
    assert all(pack(pack_event(event)).count(b"\n") == 1 for event in events)
    assert unpack(pack({"a": b"\x00\xff", "b": [{"c": b""}]})) == {"a": b"\x00\xff", "b": [{"c": b""}]}


def test_tool_calls_reach_the_app(model: Model) -> None:
    tool = Tool("vaer", "Været", {"type": "object", "properties": {"sted": {"enum": ["Oslo"]}}, "required": ["sted"]})
    *_, call, last = model.chat(messages("Hei"), Options(tools=[tool], tool_choice="required", max_tokens=100))
    assert isinstance(call, ToolCall) and (call.name, call.arguments) == ("vaer", '{"sted": "Oslo"}')
    assert isinstance(last, Finished) and last.reason == "tool_calls"
