"""Ctrl-C and SIGTERM at any moment: the program ends within a second, with a sentence, and no process is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ..helpers.serving import until

BOOT = "from borealis_gguf.cli.entry_point import main; main()"
STOPPED = "Stopped. Nothing stands half-written under a final name.\n"
SIGNALS = [signal.SIGINT, signal.SIGTERM]
SECONDS = 1.5
"""A second, and what a busy machine adds."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a test cannot send Ctrl-C to one process there")


class Program:
    """A running `borealis-gguf` and what it printed so far."""

    def __init__(self, cache: Path, *args: str | Path, boot: str = BOOT) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot, *map(str, args)],
            env={**env, "BOREALIS_GGUF_CACHE": str(cache)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        self.out = self.err = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        for text in iter(lambda: self.process.stdout.read(1), ""):  # type: ignore[union-attr]
            self.out += text

    def _read_err(self) -> None:
        for text in iter(lambda: self.process.stderr.read(1), ""):  # type: ignore[union-attr]
            self.err += text

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def _children(self, module: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if not gone(child) and module in " ".join(child.cmdline()[1:])]

    def child(self, module: str = "model_worker") -> psutil.Process:
        """The child process that runs `module`, as soon as there is one."""
        until(lambda: bool(self._children(module)), 20)
        return self._children(module)[0]

    def stop(self, number: signal.Signals) -> float:
        """Send a signal; the seconds until the end."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        seconds = time.monotonic() - begun
        self.finish_reading()
        return seconds

    def finish_reading(self) -> None:
        for reader in self._readers:
            reader.join(5)
        self.err = self.err.lstrip("\n")  # click ends the line in which a terminal shows ^C


@contextmanager
def started(*args: str | Path, cache: Path, boot: str = BOOT) -> Iterator[Program]:
    program = Program(cache, *args, boot=boot)
    try:
        yield program
    finally:
        program.process.kill()


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_while_the_model_is_loaded(command: str, number: signal.Signals, nano_q8: Path, tmp_path: Path) -> None:
    """The child is stopped, and does not notice that it should end."""
    more = {"run": ["Hei"], "chat": [], "serve": ["--port", "0"]}[command]
    with started(command, nano_q8, *more, cache=tmp_path) as program:
        child = program.child()
        child.suspend()
        if command == "serve":  # the server handles signals once it listens
            time.sleep(0.3)
        assert program.stop(number) < SECONDS
        assert program.process.returncode == 128 + number
        assert program.out == ""
        assert program.err in (STOPPED, "Stopped.\n")
        until(lambda: gone(child), 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_cpu_is_probed(number: signal.Signals, nano_q8: Path, tmp_path: Path) -> None:
    """The probe is a child of the model's process."""
    with started("run", nano_q8, "Hei", cache=tmp_path) as program:
        child = program.child()
        probe = program.child("cpu_probe")
        child.suspend()
        assert program.stop(number) < SECONDS
        assert (program.process.returncode, program.out, program.err) == (128 + number, "", STOPPED)
        until(lambda: gone(child) and gone(probe), 3)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_model_is_loaded_again(number: signal.Signals, nano_q8: Path, tmp_path: Path) -> None:
    with started("chat", nano_q8, cache=tmp_path) as program:
        program.type("/set max_tokens 3")
        program.type("Hei")
        until(lambda: program.out != "", 20)
        first = program.child()
        first.kill()
        until(lambda: gone(first))
        time.sleep(0.2)
        program.type("Hei igjen")
        second = program.child()
        second.suspend()
        shown = program.out
        assert program.stop(number) < SECONDS
        assert program.process.returncode == 128 + number
        assert program.out == shown
        assert program.err.endswith(STOPPED) and "Traceback" not in program.err
        until(lambda: gone(second), 1)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("imports", [1, 20, 200, 2000])
def test_while_the_program_is_imported(number: signal.Signals, imports: int, tmp_path: Path) -> None:
    boot = f"""
import builtins, signal
from borealis_gguf.cli.entry_point import main
real, left = builtins.__import__, [{imports}]
def counted(*args, **more):
    left[0] -= 1
    if not left[0]:
        signal.raise_signal({int(number)})
    return real(*args, **more)
builtins.__import__ = counted
main()
"""
    with started("run", "no-such-model.gguf", "Hei", cache=tmp_path, boot=boot) as program:
        program.process.wait(20)
        program.finish_reading()
        assert (program.process.returncode, program.out, program.err) == (128 + number, "", STOPPED)


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    boot = f"""
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from borealis_gguf.cli.entry_point import main
{BOOT.partition("; ")[0]}
from borealis_gguf.cli import main as module
prepare = module._prepare
module._prepare = lambda: (prepare(), signal.raise_signal(signal.SIGINT))
main()
"""
    with started("inspect", "no-such-model.gguf", cache=tmp_path, boot=boot) as program:
        assert program.process.wait(20) == 2


def test_a_second_ctrl_c_shows_no_traceback(nano_q8: Path, tmp_path: Path) -> None:
    with started("run", nano_q8, "Hei", cache=tmp_path) as program:
        child = program.child()
        child.suspend()
        for _ in range(3):
            program.process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert program.stop(signal.SIGINT) < SECONDS
        assert (program.process.returncode, program.err) == (130, STOPPED)
        until(lambda: gone(child), 1)
