"""A short run of every fuzzing target; `python -m tests.fuzz --seconds 3600` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

from .helpers.paths import ROOT

SECONDS = 60


def test_mutated_inputs_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    # always the same inputs: a gate must not fail by chance
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", "1"]
    command += ["--failures", str(tmp_path / "failures")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    tried = {line.split(":")[0]: int(line.split()[1]) for line in done.stdout.splitlines() if line.endswith(" inputs")}
    assert len(tried) == 9, done.stdout
    assert min(tried.values()) > 20, tried
    print(tried)  # with -s: how many inputs were tried


def test_a_fault_is_found(tmp_path: Path) -> None:
    """The fuzzer itself: it tells a bare exception, a slow reader, and lines that a terminal would obey."""
    from borealis_gguf import InvalidInput

    from .fuzz import Reader, fault

    def raising(error: Exception) -> Reader:
        def read(name: str, data: bytes) -> object:
            raise error

        return Reader({}, read)

    assert fault(raising(KeyError("x")), "a", b"").startswith("a bare KeyError")
    assert "not one line" in fault(raising(InvalidInput("two\nlines")), "a", b"")
    assert "not printable" in fault(raising(InvalidInput("\x1b[2J")), "a", b"")
    assert fault(raising(InvalidInput("a line")), "a", b"") == ""
