"""A short run of the benchmark's soak: random requests from many clients, each answered as it is alone."""

import re
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


def test_random_requests_from_many_clients(nano_q8: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), str(nano_q8), "--requests", "120", "--clients", "8"],
        capture_output=True, encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    same, broken, refused, wrong = map(int, re.findall(r"(\d+) (?:answers|broken|refused|wrong)", done.stdout))
    assert same + broken + refused == 120 and wrong == 0
    assert same > 60 and broken > 5
