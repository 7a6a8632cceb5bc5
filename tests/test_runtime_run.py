"""A model in a child process: the same answers, and children that really die."""

import sys
import time
from pathlib import Path

import pytest

from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.runtime.chat import load
from borealis_gguf.runtime.run import run

ASK = "Fortell om Norge."
SIGSEGV = "(SIGSEGV|SIGBUS|access violation)"


def child(code: str) -> list[str]:
    """A command that reads the request and runs `code`, with `send` for events."""
    head = "import sys, json, time, os, signal, faulthandler\nsys.stdin.read()\n"
    send = "def send(**event): print(json.dumps(event), flush=True)\n"
    return [sys.executable, "-c", head + send + code]


def test_the_same_answer_as_in_this_process(nano_q8: Path) -> None:
    with load(nano_q8, seed=5, context=256) as model:
        expected = list(model.stream(ASK, max_tokens=30))
        raw = model.generate("Norge er", raw=True, max_tokens=5)
    assert list(run(nano_q8, ASK, seed=5, context=256, max_tokens=30)) == expected
    assert expected
    messages = [{"role": "user", "content": ASK}]
    assert list(run(str(nano_q8), messages, seed=5, context=256, max_tokens=30)) == expected
    assert "".join(run(nano_q8, "Norge er", raw=True, seed=5, max_tokens=5)) == raw


def test_errors_cross_over(nano_q8: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.gguf: "):
        list(run(tmp_path / "nothing.gguf", ASK))
    with pytest.raises(InvalidInput, match="top_k"):
        list(run(nano_q8, ASK, sampling={"top_k": -1}))
    with pytest.raises(InvalidInput, match="role 'robot'"):
        list(run(nano_q8, [{"role": "robot", "content": "x"}]))


def test_paths_are_the_callers(nano_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "blå bær"
    folder.mkdir()
    (folder / "å.gguf").write_bytes(nano_q8.read_bytes())
    (folder / "numpy.py").write_text("raise SystemExit('a stray module was imported')", encoding="utf-8")
    monkeypatch.chdir(folder)
    assert "".join(run("å.gguf", ASK, seed=1, max_tokens=3)) != ""


def test_a_native_crash_is_one_clear_line() -> None:
    code = "send(phase='writing the answer')\nsend(text='Nor')\nfaulthandler._sigsegv()"
    made = run("a.gguf", ASK, command=child(code))
    assert next(made) == "Nor"
    with pytest.raises(BorealisError, match=rf"^llama.cpp died \({SIGSEGV}\) while writing the answer; .*$") as caught:
        next(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("decodes", "phase"), [(0, "reading the prompt"), (4, "writing the answer")])
def test_a_crash_of_the_real_worker(nano_q8: Path, decodes: int, phase: str) -> None:
    """The worker as it is, except that llama.cpp's place in it dies at the fifth (or first) batch."""
    code = f"""
import faulthandler, sys
sys.path[:] = {sys.path!a}
from borealis_gguf.runtime import worker
from borealis_gguf.runtime.engine import Engine
decode, left = Engine.decode, {decodes}
def dying(self, ids):
    global left
    left -= 1
    decode(self, ids) if left >= 0 else faulthandler._sigsegv()
Engine.decode = dying
worker.main()
"""
    seen = []
    with pytest.raises(BorealisError, match=rf"^llama.cpp died \({SIGSEGV}\) while {phase}; .*$"):
        for text in run(nano_q8, ASK, seed=5, command=[sys.executable, "-c", code]):
            seen.append(text)
    assert len(seen) <= decodes and bool(seen) == bool(decodes)


def test_a_crash_before_the_request_is_read() -> None:
    command = [sys.executable, "-c", "import faulthandler; faulthandler._sigsegv()"]
    with pytest.raises(BorealisError, match=rf"llama.cpp died \({SIGSEGV}\) while starting"):
        list(run("a.gguf", "x" * 1_000_000, command=command))


def test_a_line_cut_short_by_the_crash() -> None:
    code = "send(phase='loading the model')\nprint('{\"te', end='', flush=True)\nfaulthandler._sigsegv()"
    with pytest.raises(BorealisError, match=rf"{SIGSEGV}\) while loading the model"):
        list(run("a.gguf", ASK, command=child(code)))


def test_an_assertion_of_ggml_is_quoted() -> None:
    code = "print('x\\nggml.c:7: GGML_ASSERT(n > 0) failed\\ny', file=sys.stderr, flush=True)\nos.abort()"
    with pytest.raises(BorealisError, match=r"while starting: ggml\.c:7: GGML_ASSERT\(n > 0\) failed; "):
        list(run("a.gguf", ASK, command=child(code)))


def test_an_end_without_a_word() -> None:
    with pytest.raises(BorealisError, match=r"the model's process ended \(3\) while starting: ModuleNotFound"):
        list(run("a.gguf", ASK, command=child("print('ModuleNotFound', file=sys.stderr)\nsys.exit(3)")))


def test_an_abandoned_answer_ends_the_child(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    code = f"send(text='a')\nwhile True: open({str(beat)!r}, 'ab').write(b'x'); time.sleep(0.01)"
    made = run("a.gguf", ASK, command=child(code))
    assert next(made) == "a"
    while not beat.exists():
        time.sleep(0.01)
    made.close()
    size = beat.stat().st_size
    time.sleep(0.2)
    assert beat.stat().st_size == size
