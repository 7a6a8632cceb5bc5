"""The desktop example on a virtual screen, and frozen, where there is no Python."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..helpers.paths import ROOT
from ..helpers.screen import missing, screen

CHAT = ROOT / "examples" / "desktop" / "chat.py"
DRIVER = ROOT / "tests" / "helpers" / "desktop_driver.py"
UNNEEDED = (
    "hypothesis", "openai", "playwright", "pytest", "tokenizers", "torch", "transformers", "starlette", "uvicorn",
    "prompt_toolkit", "PIL", "IPython", "matplotlib", "pandas", "scipy", "sentencepiece",
)  # fmt: skip


@pytest.fixture(scope="module")
def display() -> Iterator[dict[str, str]]:
    try:
        import tkinter  # noqa: F401
    except ImportError:
        missing("tkinter")
    with screen() as variables:
        yield variables


def run(command: list[str], display: dict[str, str], **more: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **display, **more}
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=240, check=False)


def test_the_window_as_a_person_uses_it(display: dict[str, str], nano_q8: Path, tmp_path: Path) -> None:
    model = tmp_path / "blå bær-Q8_0.gguf"
    shutil.copyfile(nano_q8, model)
    done = run([sys.executable, str(DRIVER), str(model)], display)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["title"] == "blå bær-Q8_0"
    user, answer = seen["messages"]
    assert user == {"role": "user", "content": "Skriv om blåbær på fjellet."}
    assert answer["content"] and answer["content"] in seen["answer"] and user["content"] in seen["answer"]
    assert seen["two"] == [4, 2]
    assert seen["stopped"] < 2 and seen["kept"]
    assert "Er du der?" in seen["error"]
    assert seen["again"] == 4  # at the first try or the second: its death may have been noticed before
    assert seen["closed"] is True


def test_asked_on_the_command_line(display: dict[str, str], nano_q8: Path, tmp_path: Path) -> None:
    done = run([sys.executable, str(CHAT), str(nano_q8), "--ask", "Skriv om Norge."], display)
    assert done.returncode == 0, done.stderr
    assert "Skriv om Norge." in done.stdout and len(done.stdout.splitlines()) >= 4
    (tmp_path / "x.gguf").write_bytes(b"GGUF no more")
    failed = run([sys.executable, str(CHAT), str(tmp_path / "x.gguf"), "--ask", "Hei"], display)
    assert failed.returncode == 1 and "x.gguf" in failed.stdout


def test_importing_is_instant_and_loads_nothing_native() -> None:
    code = "import sys, borealis_gguf; print(sorted(m for m in ('llama_cpp', 'numpy', 'gguf') if m in sys.modules))"
    done = run([sys.executable, "-c", code], {})
    assert (done.returncode, done.stdout) == (0, "[]\n")


def hooks() -> list[str]:
    """Nothing where the package is installed: its entry point tells PyInstaller."""
    found = importlib.metadata.entry_points(group="pyinstaller40")
    if any(entry.value.startswith("borealis_gguf.") for entry in found):
        return []
    return ["--additional-hooks-dir", str(ROOT / "runtime" / "pyinstaller")]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, display: dict[str, str]) -> Path:
    """The example's folder as PyInstaller makes it, moved to where nothing of this Python is."""
    made = tmp_path_factory.mktemp("frozen")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "--name", "borealis-chat"]
    for option, folder in (("--distpath", "dist"), ("--workpath", "work"), ("--specpath", "spec")):
        command += [option, str(made / folder)]
    for module in UNNEEDED:
        command += ["--exclude-module", module]
    done = run([*command, "--paths", str(CHAT.parent), *hooks(), str(CHAT)], display)
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path_factory.mktemp("blå bær på fjellet") / "chat"
    shutil.move(made / "dist" / "borealis-chat", home)
    return home


def test_frozen_it_answers_without_python(frozen: Path, display: dict[str, str], nano_q8: Path) -> None:
    """With the model in a process of its own, which is the same program."""
    program = frozen / ("borealis-chat.exe" if os.name == "nt" else "borealis-chat")
    env = {**display, "HOME": str(frozen.parent), "BOREALIS_GGUF_CACHE": str(frozen.parent / "cache")}
    env["BOREALIS_GGUF_DATA"] = str(frozen.parent / "data")
    if os.name == "nt":
        env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
    done = subprocess.run(
        [str(program), str(nano_q8), "--ask", "Skriv om blåbær."],
        env=env, cwd=frozen.parent, capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skriv om blåbær." in done.stdout and len(done.stdout.splitlines()) >= 4
    size = sum(path.stat().st_size for path in frozen.rglob("*") if path.is_file())
    assert size < 250_000_000
    odd = subprocess.run([str(program), "--borealis-gguf-child", "os"], env=env, capture_output=True, check=False)
    assert odd.returncode == 1 and b"not a child process of borealis_gguf" in odd.stderr
