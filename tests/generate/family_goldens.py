"""Remake tests/data/goldens and tests/data/logits for the miniatures in `families`.

    python -m tests.generate.family_goldens PYTHON CONVERT [NAME...]      from the repository's root

PYTHON has torch and transformers; CONVERT is llama.cpp's convert_hf_to_gguf.py.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..helpers.families import FAMILIES, WINDOWED, Family
from ..helpers.paths import DATA, ROOT
from .goldens import GOLDENS, OUTTYPES, merge, read

LOGITS = DATA / "logits"
PEER = ROOT / "tests" / "helpers" / "peer.py"
LENGTHS = (3, 17, 96)
"""Tokens of the prompts; the window of WINDOWED lies between the last two."""
STRIDE = 7
"""Of each position's logits every seventh is kept."""


def prompts(vocabulary: int) -> list[list[int]]:
    """Ids at random, the same everywhere: BOS, then ordinary tokens."""
    bits = iter(np.random.PCG64(7).random_raw(sum(LENGTHS)))
    return [[1] + [300 + int(next(bits)) % (vocabulary - 400) for _ in range(n - 1)] for n in LENGTHS]


def positions(values: np.ndarray) -> np.ndarray:
    """Of the prompts' logits, one position after another: the last of each prompt, and some of the longest."""
    ends = np.cumsum(LENGTHS) - 1
    longest = [ends[-1] - back for back in (72, 56, 40, 24, 8)]
    return values[[*ends, *longest]][:, ::STRIDE]


def ask(python: str, *arguments: str) -> None:
    done = subprocess.run([python, str(PEER), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-3000:]}")


def make(python: str, script: str, family: Family, folder: Path) -> None:
    path = family.write(folder)
    if family not in WINDOWED:
        ask(python, "convert", script, str(path), str(folder), family.pre or "-", *OUTTYPES)
        golden = merge({outtype: read(folder / f"{outtype}.gguf") for outtype in OUTTYPES})
        text = json.dumps(golden, ensure_ascii=False, indent=None, separators=(",", ":")).replace("],[", "],\n[")
        (GOLDENS / f"{family.name}.json").write_text(text + "\n", encoding="utf-8", newline="")
    (folder / "prompts.json").write_text(json.dumps(prompts(family.text["vocab_size"])))
    ask(python, "logits", str(path), str(folder / "prompts.json"), str(folder / "logits.npy"))
    np.save(LOGITS / f"{family.name}.npy", positions(np.load(folder / "logits.npy")))


def main(python: str, script: str, *names: str) -> None:
    LOGITS.mkdir(parents=True, exist_ok=True)
    for family in (*FAMILIES, *WINDOWED):
        if not names or family.name in names:
            with tempfile.TemporaryDirectory() as folder:
                make(python, script, family, Path(folder))
            print(family.name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
