"""A short run of the benchmark's soak: random requests from many clients, each answered as it is alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from borealis_gguf import api

from ..helpers.paths import ROOT
from ..helpers.vision_models import SEEING

SOAK = ROOT / "benchmarks" / "soak.py"


def soak(model: Path, result: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SOAK), str(model), "--json", str(result), "--clients", "8", *options],
        capture_output=True, encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(result.read_text(encoding="utf-8"))


def test_random_requests_from_many_clients(nano_q8: Path, tmp_path: Path) -> None:
    found = soak(nano_q8, tmp_path / "soak.json", "--requests", "120", "--early", "60")
    assert found["equal"] + found["broken off"] + found["refused"] == 120 and found["wrong"] == 0
    assert found["equal"] > 60 and found["broken off"] > 5
    assert found["memory late"] <= found["memory early"] + (8 << 20)
    if sys.platform == "linux":
        assert found["memory late"] > 10 << 20  # it was looked at, after the early requests too


def test_a_model_that_sees(tmp_path: Path) -> None:
    """In Q8_0: with F32 weights llama.cpp's results differ in the last digits with the size of a batch."""
    plan, mmproj = api.plan_quantize(SEEING[0].write(tmp_path), ["Q8_0"], tmp_path, mmproj="f16")
    api.execute([plan, mmproj])
    found = soak(plan.path, tmp_path / "soak.json", "--requests", "50", "--early", "20")
    assert found["equal"] + found["broken off"] + found["refused"] == 50 and found["wrong"] == 0


def test_too_few_requests_to_see_growth(nano_q8: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), str(nano_q8), "--requests", "120"],
        capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "nothing can be seen" in done.stderr
