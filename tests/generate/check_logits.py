"""Remake tests/data/logits/check-nano-nb-7m.npz: what transformers makes of the prompts of `check --logits`.

python -m tests.generate.check_logits PYTHON      from the repository's root; PYTHON has torch and transformers
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from borealis_gguf import api
from borealis_gguf.quality.logits import prompts_of

from ..helpers.paths import ROOT

NANO = ROOT / "examples" / "nano-nb-7m"
RECORDED = ROOT / "tests" / "data" / "logits" / "check-nano-nb-7m.npz"
COUNT = 4
"""Positions of each prompt: a row of logits has 4096 numbers."""

RECORD = """
import json, sys
from pathlib import Path
sys.path += json.loads(sys.argv[1])
from borealis_gguf.quality.logits import record
record(sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
"""


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = api.plan_convert(NANO, Path(folder))
        api.execute([plan])
        prompts = prompts_of(str(plan.path))
    # what PYTHON lacks (gguf) is taken from here; what it has comes first
    paths = [*(path for path in sys.path if (Path(path) / "borealis_gguf").is_dir()), sysconfig.get_path("purelib")]
    arguments = [json.dumps(paths), str(NANO), json.dumps(prompts), str(RECORDED), str(COUNT)]
    subprocess.run([python, "-c", RECORD, *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
