"""Every call of the system that a small run makes about its files fails once, in every way that it can fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.paths import ROOT

SHIM = ROOT / "tests" / "helpers" / "fault_shim.c"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fault_shim.c, compiled."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return library


def test_every_failing_call_is_a_clean_error_or_the_right_bytes(shim: Path, tmp_path: Path) -> None:
    """No torn file, nothing half-written, no bare OSError, no open descriptor; interrupted and short calls repaired."""
    command = [sys.executable, "-m", "tests.helpers.fault_runs", str(tmp_path)]
    env = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads(done.stdout)
    assert not [problem for run in runs.values() for problem in run["bad"]]
    assert all(run["tried"] > run["calls"] > 100 for run in runs.values()), runs
    assert "Traceback" not in done.stderr
