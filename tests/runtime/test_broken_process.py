"""A model's process that is broken, hostile, stopped or slow: everything that waits for it gets an end, and soon."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from borealis_gguf.errors import BorealisError, Busy, EngineDied, InvalidInput
from borealis_gguf.quality import check_worker_client
from borealis_gguf.runtime.answer import Answer, start_answer
from borealis_gguf.runtime.bench import model_speed
from borealis_gguf.runtime.events import Finished, GenerationRequest, Options, Text
from borealis_gguf.runtime.fitting.cpu_probe import extra_buffers_work
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.process import isolated_model, model_worker_client
from borealis_gguf.runtime.process.isolated_model import IsolatedModel
from borealis_gguf.runtime.process.wire_format import FIGURES
from borealis_gguf.runtime.prompting import template_renderer
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate

from ..helpers.asking import generate, local
from ..helpers.serving import until
from .test_isolated_model import LOADING, child, dying

TALK = """
def reply(to, value=None): send(id=to["id"], value=value)
def text(to, said): send(id=to["id"], event=["text", said, []])
def end(to):
    usage = dict(prompt_tokens=1, cached_tokens=0, completion_tokens=1, prompt_seconds=0.5, completion_seconds=0.5)
    send(id=to["id"], event=["end", "stop", usage])
def requests():
    for line in sys.stdin: yield json.loads(line)
def died_before():
    try: os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
    except FileExistsError: return True
"""


def fake(path: Path, code: str, mark: Path | None = None) -> IsolatedModel:
    """A model whose process runs `code`; `died_before()` is true from its second call on, in any process."""
    return IsolatedModel(path, LOADING, command=child(f"MARK = {str(mark)!a}\n{TALK}\n{code}"))


def raised_by(function: Callable[[], Any], seconds: float = 10) -> BaseException | None:
    """What `function` raises; it must come to an end."""
    raised: list[BaseException | None] = []

    def work() -> None:
        try:
            function()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it hangs"
    return raised[0]


class Later:
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._work, args=(function,), daemon=True)
        self._thread.start()

    def _work(self, function: Callable[[], Any]) -> None:
        try:
            self.result = function()
        except BaseException as error:
            self.result = error

    def end(self, seconds: float = 10) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "it hangs"
        return self.result


def ask(model: IsolatedModel, prompt: str = "x") -> Answer:
    request = GenerationRequest(prompt, True)
    return start_answer(Answer(request.options), lambda sink: model.start(request, sink))


NONSENSE: Mapping[str, str] = {
    "no JSON": "print('Segmentation fault', flush=True)",
    "nested too deep": "print('[' * 200000, flush=True)",
    "no UTF-8": "sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()",
    "no object": "print('[1, 2]', flush=True)",
    "an unknown message": "send(dance=1)",
    "an unknown event": "send(id=to['id'], event=['dance'])",
    "an event that is none": "send(id=to['id'], event=7)",
    "an unknown reason": "send(id=to['id'], event=['end', 'dance', {}])",
    "a usage that is none": "send(id=to['id'], event=['end', 'stop', {'tokens': 1}])",
    "logprobs that are none": "send(id=to['id'], event=['text', 'x', [1]])",
    "a number that is a list": "send(id=[], value=1)",
    "a reply that is none": "send(id=pending['id'], value=7)",
    "a reply without a value": "send(id=pending['id'])",
    "an odd error": "send(id=pending['id'], error='x', retry_after='soon')",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_from_a_living_process_is_a_crash(
    kind: str, nano_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_worker_client, "DYING_SECONDS", 0.2)
    code = f"""
ready()
count = 0
for to in requests():
    if to["do"] == "tokenize":
        pending = to
        if died_before(): reply(to, [1, 2])
    elif to["do"] == "start":
        count += 1
        reply(to)
        text(to, "Hei")
        if count == 2:
            {NONSENSE[kind]}
"""
    model = fake(nano_q8, code, tmp_path / "mark")
    try:
        tokens = Later(lambda: model.tokenize("x"))
        until((tmp_path / "mark").exists)
        answers = [ask(model), ask(model)]
        errors = [raised_by(answer.text) for answer in answers]
        assert {answer.shown for answer in answers} <= {"Hei", ""}
        for error in errors:
            assert isinstance(error, EngineDied) and len(str(error)) < 300 and str(error).isprintable()
            assert "the model's process was ended while writing the answer: it sent what is no message: " in str(error)
        assert isinstance(tokens.end(), EngineDied)
        assert model.tokenize("x") == [1, 2]
        assert model._restarts == 1
    finally:
        model.close()


@pytest.mark.parametrize("message", ["send(ready={})", "send(ready=7)", "send(progress='much')", "print('x')"])
def test_nonsense_while_loading(message: str, nano_q8: Path) -> None:
    error = raised_by(lambda: fake(nano_q8, f"{message}\nsys.stdout.flush()\ntime.sleep(60)"))
    assert isinstance(error, EngineDied) and "sent what is no message: " in str(error)


def test_a_process_that_ends_its_output_and_lives(nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_worker_client, "EXIT_SECONDS", 0.2)
    model = fake(nano_q8, "ready()\nsys.stdin.readline()\nos.close(1)\ntime.sleep(60)")
    process = model._worker._process
    assert "it closed its output" in str(raised_by(lambda: model.tokenize("x")))
    assert process.poll() is not None
    model.close()


def test_a_process_that_reads_nothing_blocks_only_who_waits_for_it(nano_q8: Path) -> None:
    model = fake(nano_q8, "ready()\ntime.sleep(60)")
    started = [Later(lambda: ask(model, "x" * 1_000_000)) for _ in range(3)]
    begun = time.monotonic()
    assert raised_by(lambda: model._worker.cancel(1), 1) is None
    assert [raised_by(model.stats, 5) for _ in range(100)] == [None] * 100
    assert raised_by(model.close, 5) is None
    assert time.monotonic() - begun < 5
    assert [str(each.end()) for each in started] == ["the model is closed"] * 3


def test_restarts_leak_no_file_descriptors(nano_q8: Path) -> None:
    process = psutil.Process()
    count = process.num_handles if os.name == "nt" else process.num_fds
    before = count()
    model = fake(nano_q8, "ready()\nfor to in requests():\n    reply(to, [os.getpid()])")
    first = count()
    pids: set[int] = set()
    for _ in range(5):
        pids.update(model.tokenize("x"))
        child = model._worker._process
        child.kill()
        until(lambda: model._worker.ended is not None)
    pids.update(model.tokenize("x"))
    assert len(pids) == 6
    slack = 10 if os.name == "nt" else 0  # Windows keeps handles of threads
    until(lambda: count() <= first + slack)
    model.close()
    assert count() <= before + slack


def test_failed_loads_leak_no_file_descriptors(nano_q8: Path) -> None:
    process = psutil.Process()
    count = process.num_handles if os.name == "nt" else process.num_fds
    fails: list[Callable[[], Any]] = [
        lambda: fake(nano_q8, "send(error='no', code=2)"),
        lambda: fake(nano_q8, "os._exit(3)"),
        lambda: IsolatedModel(nano_q8, LOADING, command=["/no/such/program"]),
    ]
    for fail in fails:
        raised_by(fail)
    before = count()
    for fail in fails:
        for _ in range(3):
            assert isinstance(raised_by(fail), BorealisError)
    assert count() <= before + (10 if os.name == "nt" else 0)


def test_a_system_without_threads_leaves_no_process(nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(BorealisError, match="cannot be listened to"):
            fake(nano_q8, "ready()\ntime.sleep(60)")
    assert not psutil.Process().children()


def test_a_receiver_that_raises_ends_its_own_answer(nano_q8: Path) -> None:
    code = """
ready()
started = []
for to in requests():
    if to["do"] == "start":
        reply(to)
        started.append(to)
        if len(started) == 2:
            for each in started: text(each, "Hei")
            end(started[1])
    elif to["do"] == "tokenize": reply(to, [1])
"""
    model, seen = fake(nano_q8, code), []

    def sink(event: Any) -> None:
        seen.append(event)
        if isinstance(event, Text):
            raise SystemExit("no more")

    model.start(GenerationRequest("x", True), sink)
    assert raised_by(lambda: ask(model).text()) is None
    assert model.tokenize("x") == [1]
    assert seen[0] == Text("Hei") and isinstance(seen[-1], BorealisError) and len(seen) == 2
    assert "no more" in str(seen[-1])
    model.close()


def test_every_answer_is_told_when_one_receiver_raises(nano_q8: Path) -> None:
    """Also StopIteration, by which a loop over the others would end early."""
    model = fake(nano_q8, "ready()\nfor to in requests():\n    reply(to)")
    told: list[int] = []

    def sink_of(number: int) -> Callable[[Any], None]:
        def sink(event: Any) -> None:
            told.append(number)
            raise (StopIteration if number % 2 else KeyError)(number)

        return sink

    for number in range(6):
        model.start(GenerationRequest("x", True), sink_of(number))
    model._worker._process.kill()
    until(lambda: sorted(told) == list(range(6)))
    model.close()


def test_an_answer_dropped_by_the_garbage_collector_takes_no_lock(nano_q8: Path) -> None:
    """The collector may run wherever a lock is held."""
    with load(nano_q8, context=512, isolate=True, seed=1, sampling={"temperature": 0.0}) as model:
        assert isinstance(model.backend, IsolatedModel)
        worker, answers = model.backend._worker, [model.complete("Norge er", Options(max_tokens=500))]
        next(answers[0])
        _in_a_cycle(answers.pop())

        def collect() -> None:
            with worker._lock, model.backend._lock:  # type: ignore[attr-defined]
                gc.collect()

        assert raised_by(collect) is None
        until(lambda: model.stats()["cancelled_total"] == 1)


def test_a_dropped_answer_of_this_process_takes_no_lock(nano_q8: Path) -> None:
    with load(nano_q8, context=512, seed=1, sampling={"temperature": 0.0}) as model:
        answers, held, go = [model.complete("Norge er", Options(max_tokens=500))], threading.Event(), threading.Event()
        next(answers[0])
        changed = answers[0]._changed

        def hold() -> None:
            with changed, local(model)._scheduler._changed:
                held.set()
                go.wait(20)

        holder = Later(hold)
        assert held.wait(5)
        try:
            assert raised_by(answers.clear, 5) is None
        finally:
            go.set()
        holder.end()
        until(lambda: model.stats()["cancelled_total"] == 1)


def _in_a_cycle(answer: Answer) -> None:
    """Only the garbage collector frees it."""
    answer.myself = answer  # type: ignore[attr-defined]


SLOW_RESTART = """
if died_before(): time.sleep(60)
ready()
for to in requests():
    if to["do"] == "stats": reply(to, dict.fromkeys(FIGURES, 7))
    else: reply(to)
"""


@pytest.fixture
def restarting(nano_q8: Path, tmp_path: Path) -> Any:
    """A model whose process died, and whose next one is loading for a long time; what cancels an old answer."""
    model = fake(nano_q8, f"FIGURES = {FIGURES!a}\n{SLOW_RESTART}", tmp_path / "mark")
    cancel = model.start(GenerationRequest("x", True), lambda event: None)
    assert model.stats()["active"] == 7 and model.stats()["up"] == 1
    old = model._worker
    old._process.kill()
    until(lambda: old.ended is not None)
    yield model, cancel
    model.close()


def test_a_restart_blocks_only_who_needs_the_model(restarting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cancel = restarting
    waiting = Later(lambda: model.tokenize("x"))
    until(lambda: model._restarts == 1)
    begun = time.monotonic()
    assert raised_by(cancel, 5) is None
    assert model.stats() == {**dict.fromkeys(FIGURES, 0), "up": 0, "restarts_total": 1}
    assert model.info.context == 9
    assert time.monotonic() - begun < 0.5
    monkeypatch.setattr(isolated_model, "RESTART_SECONDS", 0.3)
    with pytest.raises(Busy, match="is being started again; try again in a moment"):
        model.tokenize("x")
    assert model._restarts == 1
    process = model._worker._process
    begun = time.monotonic()
    assert raised_by(model.close, 5) is None
    assert str(waiting.end(1)) == "the model is closed"
    assert time.monotonic() - begun < 1 and process.poll() is not None
    with pytest.raises(BorealisError, match="the model is closed"):
        model.stats()


def test_statistics_start_a_dead_process_again(restarting: Any) -> None:
    model, _ = restarting
    assert (model.stats()["up"], model.stats()["restarts_total"]) == (0, 1)


def test_statistics_of_a_stopped_process_are_the_last_ones(nano_q8: Path) -> None:
    with load(nano_q8, context=256, isolate=True, seed=1) as model:
        generate(model, "Norge er", raw=True, max_tokens=3)
        assert isinstance(model.backend, IsolatedModel)
        before = model.stats()
        assert before["up"] == 1 and before.keys() == {*FIGURES, "up", "restarts_total"}
        process = psutil.Process(model.backend._worker._process.pid)
        process.suspend()
        begun = time.monotonic()
        assert [model.stats() for _ in range(50)] == [{**before, "up": 0}] * 50
        assert time.monotonic() - begun < 2
        process.resume()
        until(lambda: model.stats() == before)


def test_both_backends_report_the_same_figures(nano_q8: Path) -> None:
    with load(nano_q8, context=256) as model:
        assert model.stats().keys() == {*FIGURES, "up", "restarts_total"} and model.stats()["up"] == 1


def test_a_request_nested_too_deep_is_refused_and_ends_nothing(nano_q8: Path) -> None:
    with load(nano_q8, context=256, isolate=True, seed=1) as model:
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(InvalidInput, match="nested too deep"):
            model.chat([{"role": "user", "content": deep}])
        assert generate(model, "Norge er", raw=True, max_tokens=2) != ""
        assert model.stats()["restarts_total"] == 0


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_whatever_a_request_raises_in_the_process_reaches_the_app(raised: str, nano_q8: Path) -> None:
    patch = f"def fail(*_, **__): raise {raised}\nEngine.tokenize = fail"
    with Model(nano_q8, IsolatedModel(nano_q8, LOADING, command=dying(nano_q8, patch))) as model:
        error = raised_by(lambda: model.tokenize("x"))
        assert isinstance(error, BorealisError) and raised.partition("(")[0] in str(error)
        assert model.detokenize([300]) != ""


def test_an_unusable_engine_ends_its_process_and_the_next_request_works(nano_q8: Path, tmp_path: Path) -> None:
    patch = f"""
from pathlib import Path
from borealis_gguf.runtime.scheduling.slots import SlotPool
mark = Path({str(tmp_path / "failed")!a})
clear = SlotPool.clear
def fail(self, slot):
    if mark.exists(): return clear(self, slot)
    mark.touch()
    raise RuntimeError("no way back")
def undecodable(self, cells):
    if mark.exists(): return decode(self, cells)
    raise RuntimeError("no way on")
SlotPool.clear, Engine.decode = fail, undecodable
"""
    with Model(nano_q8, IsolatedModel(nano_q8, LOADING, command=dying(nano_q8, patch))) as model:
        error = raised_by(lambda: generate(model, "Norge er", raw=True, max_tokens=3))
        assert isinstance(error, BorealisError) and "no way on" in str(error)
        errors = [raised_by(lambda: generate(model, "Norge er", raw=True, max_tokens=3)) for _ in range(2)]
        assert errors[-1] is None
        assert model.stats()["restarts_total"] == 1


def test_a_start_that_is_interrupted_leaves_no_answer_running(nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
ready()
for to in requests():
    if to["do"] == "start": started = to
    elif to["do"] == "cancel": cancelled = to["id"] == started["id"]
    else: reply(to, [int(cancelled)])
"""
    model = fake(nano_q8, code)

    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_worker_client._PendingReply, "wait", interrupted)
        ask(model)
    assert model.tokenize("x") == [1]
    model.close()


def test_an_answer_cancelled_while_it_starts_is_cancelled(nano_q8: Path, tmp_path: Path) -> None:
    patch = f"""
import time
from pathlib import Path
from borealis_gguf.runtime.process.in_process_model import InProcessModel
start = InProcessModel.start
def slow(*args):
    Path({str(tmp_path / "starting")!a}).touch()
    while not Path({str(tmp_path / "go")!a}).exists(): time.sleep(0.01)
    return start(*args)
InProcessModel.start = slow
"""
    isolated = IsolatedModel(nano_q8, LOADING, command=dying(nano_q8, patch))
    with Model(nano_q8, isolated) as model:
        answer = Later(lambda: model.complete("Norge er", Options(max_tokens=200, seed=1)))
        until((tmp_path / "starting").exists)
        isolated._worker.cancel(1)
        isolated._worker.call("stats")  # the child has read the line before
        (tmp_path / "go").touch()
        *_, last = answer.end()
        assert isinstance(last, Finished) and last.reason == "cancelled"


@pytest.mark.skipif(os.name == "nt", reason="there, a process that is stopped and resumed notices nothing")
def test_a_process_that_is_stopped_while_it_writes_loses_nothing() -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!a}
from borealis_gguf.runtime.process.child_process import private_stdout
private_stdout().write(bytes(2_000_000))
"""
    count = 0
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read1(100_000):  # type: ignore[union-attr]
            count += len(data)
            if count < 1_000_000:
                psutil.Process(process.pid).suspend()
                psutil.Process(process.pid).resume()
    assert count == 2_000_000


@pytest.mark.parametrize("said", ["'Segmentation fault'", "'[' * 200000", "'[1]'"])
def test_nonsense_from_the_other_processes(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", f"import time; print({said}, flush=True)"]
    monkeypatch.setattr(check_worker_client, "child_command", lambda *_: command)
    error = raised_by(check_worker_client.PendingRequest("task", "testing", {}).result)
    assert isinstance(error, BorealisError) and "while testing, the process sent what is no answer: " in str(error)
    monkeypatch.setattr(model_speed, "child_command", lambda *_: [*command[:2], f"{command[2]}; time.sleep(60)"])
    error = raised_by(lambda: list(model_speed._messages({"path": "x"})))
    assert isinstance(error, EngineDied) and "x: the measuring process sent what is no message: " in str(error)


def test_a_measuring_process_that_dies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it read the request, which is longer than a pipe holds."""
    monkeypatch.setattr(model_speed, "child_command", lambda *_: [sys.executable, "-c", "import os; os._exit(3)"])
    error = raised_by(lambda: list(model_speed._messages({"path": "x", "long": "x" * 1_000_000})))
    assert isinstance(error, EngineDied) and "x: the measuring process died (3)" in str(error)


SECRETS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "BOREALIS_GGUF_API_KEY")
PRINT = "import json, os; print(json.dumps({'environment': dict(os.environ)}), flush=True)"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "BOREALIS_GGUF_VISIBLE"):
        monkeypatch.setenv(name, "hf_a-secret")


@pytest.mark.usefixtures("secrets")
class TestNoChildGetsSecrets:
    def check(self, environment: Mapping[str, str]) -> None:
        assert [name for name, value in environment.items() if value == "hf_a-secret"] == ["BOREALIS_GGUF_VISIBLE"]

    def test_the_models_process(self, nano_q8: Path) -> None:
        model = fake(nano_q8, "ready()\nfor to in requests(): reply(to, json.dumps(dict(os.environ)))")
        self.check(json.loads(model.detokenize([1])))
        model.close()

    def test_the_check_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_worker_client, "child_command", lambda *_: [sys.executable, "-c", PRINT])
        self.check(check_worker_client.PendingRequest("task", "testing", {}).result()["environment"])

    def test_the_template_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = f"print('ready', flush=True); input(); {PRINT}"
        monkeypatch.setattr(template_renderer, "child_command", lambda *_: [sys.executable, "-c", code])
        with template_renderer.TemplateRenderer(ChatTemplate("", "", "")) as renderer:
            self.check(json.loads(renderer._exchange(b"{}\n"))["environment"])

    def test_the_measuring_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_speed, "child_command", lambda *_: [sys.executable, "-c", PRINT])
        (message,) = model_speed._messages({"path": "x"})
        self.check(message["environment"])

    def test_the_probe(self) -> None:
        code = f"import os, sys; sys.exit(any(name in os.environ for name in {SECRETS!a}))"
        assert extra_buffers_work(lambda extra: [sys.executable, "-c", code], identity=["secrets"])
