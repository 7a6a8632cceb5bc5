"""Memory is bounded by workers and chunks, not by the model: shown on a checkpoint of 27b's widths made of holes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_cli import BOOT, run

SHAPES = Path(__file__).parents[1] / "benchmarks" / "shapes.py"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a child's peak memory")
def test_a_27b_shape_stays_under_600_mb(tmp_path: Path) -> None:
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": path}
    checkpoint = tmp_path / "borealis-27b"
    command = [sys.executable, str(SHAPES), "27b", str(checkpoint), "--sparse", "--layers", "1"]
    subprocess.run(command, env=env, check=True)
    args = ["quantize", "Q4_K_M", "-m", str(checkpoint), "-o", str(tmp_path), "-q"]
    child = subprocess.Popen([sys.executable, "-c", BOOT, *args], env=env)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert (tmp_path / "borealis-27b-Q4_K_M.gguf").stat().st_size > 1_000_000_000
    assert usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) < 600_000_000


def test_the_plan_of_a_whole_27b_tells_its_needs(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, str(SHAPES), "27b", str(tmp_path / "m"), "--sparse"], env=env, check=True)
    done = run("quantize", "Q4_K_M", "-m", tmp_path / "m", "--dry-run", "-j", "2")
    assert done.returncode == 0, done.stderr
    assert "Disk: 16.55 GB. Buffers: " in done.stdout
    assert done.stdout.count("Q6_K") > 60
