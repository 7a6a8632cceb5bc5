"""The probe: llama.cpp on this very machine, and children that really die, hang or fail."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix
from platformdirs.windows import Windows

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.errors import BorealisError
from borealis_gguf.machine_cache import cache_dir
from borealis_gguf.runtime.fitting.cpu_probe import (
    TYPES,
    extra_buffers_work,
    machine_identity,
    probe_command,
    write_probe_model,
)
from borealis_gguf.runtime.model import load

from ..helpers.asking import generate, local

FINE = [sys.executable, "-c", "pass"]
DIES = [sys.executable, "-c", "import faulthandler; faulthandler._sigsegv()"]
FAILS = [sys.executable, "-c", "raise SystemExit('no such library')"]
HANGS = [sys.executable, "-c", "import time; time.sleep(60)"]
KILLED = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
SIGSEGV = "(SIGSEGV|SIGBUS|access violation)"

Command = Callable[[bool], list[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def children(extra: list[str], plain: list[str] = FINE) -> Command:
    return lambda extra_buffers: extra if extra_buffers else plain


def never(extra_buffers: bool) -> list[str]:
    raise AssertionError("asked again")


def test_llama_cpp_survives_here_without_extra_buffers() -> None:
    done = subprocess.run(probe_command(False), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_answer_for_this_machine_is_remembered(cache: Path) -> None:
    answer = extra_buffers_work()
    died = subprocess.run(probe_command(True), capture_output=True, timeout=60, check=False).returncode != 0
    assert answer is not died
    assert len(list((cache / "probe").iterdir())) == 1
    assert extra_buffers_work(never) is answer


def test_the_probe_has_every_everyday_type(tmp_path: Path) -> None:
    write_probe_model(tmp_path / "probe.gguf")
    tensors = read_gguf(tmp_path / "probe.gguf").tensors
    assert {name: tensors[name].type for name in TYPES} == TYPES
    assert {type.name for type in TYPES.values()} == {"Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL"}


def test_a_crash_turns_extra_buffers_off_and_is_remembered() -> None:
    assert extra_buffers_work(children(DIES)) is False
    assert extra_buffers_work(never) is False


def test_models_are_loaded_as_the_answer_says(nano_q4: Path) -> None:
    assert extra_buffers_work(children(DIES)) is False
    with load(nano_q4, seed=1) as model:
        assert local(model).engine.extra_buffers is False
        assert generate(model, "Hei", max_tokens=3) != ""


def test_another_machine_or_library_is_asked_anew() -> None:
    assert extra_buffers_work(children(DIES), identity=["a", 1]) is False
    assert extra_buffers_work(children(FINE), identity=["a", 2]) is True
    assert extra_buffers_work(never, identity=["a", 1]) is False
    assert extra_buffers_work(never, identity=["a", 2]) is True


def test_the_identity_names_version_libraries_and_cpu() -> None:
    identity = machine_identity()
    assert identity[1] == importlib.metadata.version("llama-cpp-python")
    assert all(size > 0 and mtime > 0 for _, size, mtime in identity[2])
    assert any("ggml-cpu" in name or "ggml" in name for name, _, _ in identity[2])
    assert any(identity[3:])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"identity": ["a"]}', '{"identity": ["a"], "extra_buffers": 1}']
)
def test_a_damaged_note_is_asked_anew(cache: Path, content: str) -> None:
    assert extra_buffers_work(children(FINE), identity=["a"]) is True
    (note,) = (cache / "probe").iterdir()
    note.write_text(content, encoding="utf-8")
    assert extra_buffers_work(children(DIES), identity=["a"]) is False
    assert extra_buffers_work(never, identity=["a"]) is False


@pytest.mark.parametrize("first", [FAILS, HANGS])
def test_transient_failures_are_not_cached(cache: Path, first: list[str]) -> None:
    assert extra_buffers_work(children(first), timeout=1) is False
    assert not cache.exists()


def test_a_kill_from_outside_is_not_remembered(cache: Path) -> None:
    assert extra_buffers_work(children(KILLED)) is False
    assert not cache.exists()


def test_death_either_way_is_one_clear_line(cache: Path) -> None:
    with pytest.raises(BorealisError) as caught:
        extra_buffers_work(children(DIES, FAILS))
    message = str(caught.value)
    assert "does not work on this machine: its probe died (SIG" in message or "access violation" in message
    assert "without extra buffers it failed (no such library); reinstall llama-cpp-python" in message
    assert "\n" not in message
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_only_time(cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    assert extra_buffers_work(children(FINE)) is True
    assert extra_buffers_work(children(DIES)) is False


@pytest.mark.parametrize(("system", "variable"), [(Unix, "XDG_CACHE_HOME"), (Windows, "LOCALAPPDATA"), (MacOS, None)])
def test_the_platforms_cache_folder(
    system: type, variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOREALIS_GGUF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("platformdirs.PlatformDirs", system)
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda _: str(tmp_path))  # asks Windows
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    folder = tmp_path if variable else Path.home() / "Library" / "Caches"
    assert cache_dir() == folder / "borealis-gguf"
