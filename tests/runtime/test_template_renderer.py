"""The process that renders chat templates: its limits, what happens when it is ended, and that it never outlives us."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.modelfiles.write import write_modelfile
from borealis_gguf.runtime.events import Options
from borealis_gguf.runtime.model import load
from borealis_gguf.runtime.prompting import template_renderer
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate, Rendering, Segment
from borealis_gguf.runtime.prompting.template_renderer import TemplateRenderer

from ..cli.test_cli import run
from ..helpers.asking import messages
from ..helpers.gguf_faults import set_value, with_metadata
from ..helpers.paths import DATA

HOSTILE = sorted((DATA / "hostile_templates").glob("*.jinja"))
LIMITS = (
    r"the model's chat template (takes longer than 0\.5 s|needs more than 160 MB) to render: it is broken or hostile"
)
ENDLESS = "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
ENDLESS_IF_ASKED = "{{ messages[0].content }}{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}!"
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and counters")
hostile = pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)


def process_of(renderer: TemplateRenderer) -> psutil.Process:
    assert renderer._process is not None
    return psutil.Process(renderer._process._process.pid)


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_ended(process: psutil.Process) -> bool:
    """A process whose parent has not asked for its exit code is a zombie."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@posix
def test_hostile_templates_take_little_time_and_memory() -> None:
    script = Path(__file__).parents[1] / "helpers" / "template_limits.py"
    command = [sys.executable, str(script), *map(str, HOSTILE)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["results"]) == len(HOSTILE) == 9
    for path, result in zip(HOSTILE, answer["results"], strict=True):
        assert re.match(LIMITS, result["message"]), path
        assert result["seconds"] < 2, path
    assert answer["peak"] < 256 << 20


@hostile
def test_a_modelfile_is_not_written_for_a_hostile_template(path: Path, nano_q8: Path, tmp_path: Path) -> None:
    gguf = gguf_with_template(path, nano_q8, tmp_path)
    with pytest.raises(InvalidInput, match=r"hostile\.gguf: " + LIMITS):
        write_modelfile(gguf)


@hostile
def test_a_model_with_a_hostile_template_answers_without_it(path: Path, nano_q8: Path, tmp_path: Path) -> None:
    with load(gguf_with_template(path, nano_q8, tmp_path), isolate=True) as model:
        with pytest.raises(InvalidInput, match=LIMITS):
            model.chat(messages("Hei"), Options(max_tokens=1)).text()
        assert model.complete("Hei", Options(max_tokens=3)).text()


def test_other_answers_go_on_while_a_hostile_template_is_rendered(nano_q8: Path, tmp_path: Path) -> None:
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
    path = next(path for path in HOSTILE if path.stem == "range-reused")
    with load(gguf_with_template(path, nano_q8, tmp_path), isolate=True, parallel=2) as model:
        answer = iter(model.complete("Hei", Options(max_tokens=1900, seed=1, schema=endless)))
        next(answer)
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(lambda: model.chat(messages("Hei"), Options(max_tokens=1)).text())
            meanwhile = 0
            while not refused.done():
                next(answer)
                meanwhile += 1
        with pytest.raises(InvalidInput, match=LIMITS):
            refused.result()
        assert meanwhile > 10
        answer.close()


@pytest.mark.parametrize("name", ["range-reused", "tilde"])
def test_commands_say_in_one_line_that_a_template_is_hostile(name: str, nano_q8: Path, tmp_path: Path) -> None:
    gguf = gguf_with_template(DATA / "hostile_templates" / f"{name}.jinja", nano_q8, tmp_path)
    for done in (run("modelfile", gguf), run("run", gguf, "Hei", "-n", "1")):
        assert (done.returncode, done.stdout) == (2, "")
        assert re.search(LIMITS, done.stderr.splitlines()[-1]) and "Traceback" not in done.stderr


def gguf_with_template(path: Path, good: Path, folder: Path) -> Path:
    source = path.read_text(encoding="utf-8")
    return with_metadata(good, folder / "hostile.gguf", set_value("tokenizer.chat_template", source))


def test_after_a_hostile_rendering_an_honest_one_succeeds() -> None:
    with TemplateRenderer(ChatTemplate(ENDLESS_IF_ASKED)) as renderer:
        for _ in range(2):
            with pytest.raises(InvalidInput, match=LIMITS):
                renderer.render_segments(messages("loop"))
            assert renderer.render_segments(messages("Hei")) == ("Hei!", [Segment("Hei", False), Segment("!", True)])


def test_too_much_memory_ends_one_rendering_alone() -> None:
    source = "{{ 'a'.ljust(10**9 if messages[0].content == 'fill' else 3) }}"
    with TemplateRenderer(ChatTemplate(source)) as renderer:
        with pytest.raises(InvalidInput, match="needs more than 160 MB"):
            renderer.render_segments(messages("fill"))
        assert renderer.render_segments(messages("Hei"))[0] == "a  "


def test_all_conversations_of_a_request_have_one_limit() -> None:
    with TemplateRenderer(ChatTemplate(ENDLESS_IF_ASKED)) as renderer:
        assert renderer.render_each([messages("a"), messages("b")]) == [Rendering("a!"), Rendering("b!")]
        with pytest.raises(InvalidInput, match=LIMITS):
            renderer.render_each([messages("a")] + [messages("loop")] * 100)


def test_a_refusal_is_of_its_conversation_alone() -> None:
    with TemplateRenderer(ChatTemplate("{{ raise_exception('Nei\x1b[2J' * 1000) if not messages }}x")) as renderer:
        refused, rendered = renderer.render_each([[], messages("Hei")])
    assert rendered == Rendering("x")
    assert refused.text is None and refused.refusal.startswith("the model's chat template refuses: Nei\ufffd[2JNei")
    assert len(refused.refusal) < 600


def test_a_prompt_is_not_much_longer_than_its_conversation() -> None:
    source = "{% for i in range(100) %}{{ messages[0].content }}{% endfor %}{{ 'a' * 15000 }}"
    with TemplateRenderer(ChatTemplate(source)) as renderer:
        assert len(renderer.render_segments(messages("Hei" * 10))[0]) == 18_000
        with pytest.raises(InvalidInput, match=r"refuses: it makes more than \d+ characters"):
            renderer.render_segments(messages("Hei" * 10_000))


@posix
def test_a_process_that_is_killed_meanwhile_is_an_error_and_the_next_one_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template_renderer, "MAX_PROCESSOR_SECONDS", 60.0)
    with TemplateRenderer(ChatTemplate(ENDLESS_IF_ASKED)) as renderer, ThreadPoolExecutor(1) as pool:
        assert renderer.render_segments(messages("Hei"))[0] == "Hei!"
        process = process_of(renderer)
        before = process.cpu_times().user
        pending = pool.submit(renderer.render_segments, messages("loop"))
        wait_until(lambda: process.cpu_times().user > before + 0.05)
        process.kill()
        with pytest.raises(InvalidInput, match=r"ended the process that renders it \(SIGKILL\)"):
            pending.result()
        assert renderer.render_segments(messages("Hei"))[0] == "Hei!"
        idle = process_of(renderer)
        idle.kill()
        wait_until(lambda: has_ended(idle))
        assert renderer.render_segments(messages("Hei"))[0] == "Hei!"


def test_many_threads_get_their_own_answers() -> None:
    texts = ["loop" if at == 7 else f"tekst {at}" for at in range(40)]
    with TemplateRenderer(ChatTemplate(ENDLESS_IF_ASKED)) as renderer, ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(renderer.render_segments, messages(text)) for text in texts]
        for text, each in zip(texts, pending, strict=True):
            if text == "loop":
                with pytest.raises(InvalidInput, match=LIMITS):
                    each.result()
            else:
                assert each.result()[0] == text + "!"


def test_closing_ends_the_process() -> None:
    renderer = TemplateRenderer(ChatTemplate("x"))
    process = process_of(renderer)
    renderer.close()
    renderer.close()
    assert not process.is_running()
    with pytest.raises(BorealisError, match="the model is closed"):
        renderer.render_segments(messages("Hei"))


def test_no_file_descriptors_are_left() -> None:
    with TemplateRenderer(ChatTemplate(ENDLESS_IF_ASKED)) as renderer:
        renderer.render_segments(messages("Hei"))
        before = descriptors()
        with pytest.raises(InvalidInput):
            renderer.render_segments(messages("loop"))
        renderer.render_segments(messages("Hei"))
        assert descriptors() == before
    assert descriptors() < before


def descriptors() -> int:
    process = psutil.Process()
    return process.num_handles() if sys.platform == "win32" else process.num_fds()


def test_images_stay_out_of_the_templates_process() -> None:
    content = [{"type": "image", "data": b"\xff" * 100}, {"type": "text", "text": "Hei"}]
    source = "{% for part in messages[0].content %}{{ part.type }}{{ part.text }}{{ part.data }}{% endfor %}"
    with TemplateRenderer(ChatTemplate(source)) as renderer:
        assert renderer.render_segments([{"role": "user", "content": content}])[0] == "imagetextHei"
        with pytest.raises(InvalidInput, match="a message holds what JSON cannot"):
            renderer.render_segments([{"role": "user", "content": "Hei", "x": object()}])


def test_texts_of_every_kind_come_back() -> None:
    text = "æ\u2028\r\n\x00\ud800😀\x1c"
    with TemplateRenderer(ChatTemplate("{{ messages[0].content }}")) as renderer:
        assert renderer.render_segments(messages(text))[0] == text


PARENT = """
import sys, time
from borealis_gguf.runtime.prompting import template_renderer
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
template_renderer.MAX_PROCESSOR_SECONDS, template_renderer.MAX_SECONDS = 60, float(sys.argv[2])
renderer = template_renderer.TemplateRenderer(ChatTemplate(sys.argv[1]))
print(renderer._process._process.pid, flush=True)
renderer.render_segments([{"role": "user", "content": "Hei"}])
print("rendered", flush=True)
time.sleep(60)
"""


def start_parent(template: str, max_seconds: float) -> tuple[subprocess.Popen[str], psutil.Process]:
    command = [sys.executable, "-c", PARENT, template, str(max_seconds)]
    parent = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("template", ["Hei", ENDLESS], ids=["idle", "busy"])
def test_the_process_does_not_outlive_a_killed_parent(template: str) -> None:
    parent, process = start_parent(template, max_seconds=1)
    if template == ENDLESS:
        wait_until(lambda: process.cpu_times().user > 0.3)
    else:
        assert parent.stdout is not None and parent.stdout.readline() == "rendered\n"
    parent.kill()
    parent.communicate()
    wait_until(lambda: has_ended(process))


@posix
@pytest.mark.parametrize("how", ["killed", "closed"])
def test_the_process_ends_with_its_model(how: str, nano_q8: Path) -> None:
    before = psutil.Process().children()
    with load(nano_q8, isolate=True) as model:
        (child,) = (each for each in psutil.Process().children() if each not in before)
        assert model.chat(messages("Hei"), Options(max_tokens=1)).text() is not None
        (process,) = child.children()
        if how == "killed":
            child.kill()
            wait_until(lambda: has_ended(process))
            assert model.chat(messages("Hei"), Options(max_tokens=1)).text() is not None
    wait_until(lambda: has_ended(process))


@posix
def test_ctrl_c_ends_a_rendering_at_once() -> None:
    """As a terminal sends it: to both processes."""
    parent, process = start_parent(ENDLESS, max_seconds=60)
    wait_until(lambda: process.cpu_times().user > 0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    assert process.is_running()
    parent.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, stderr = parent.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert stderr.splitlines()[-1] == "KeyboardInterrupt"
    wait_until(lambda: has_ended(process))
