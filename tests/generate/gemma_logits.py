"""Remake tests/data/logits/gemma-*.npy: transformers' logits of the miniatures in `gemma_texts`.

    python -m tests.generate.gemma_logits PYTHON [SIZE...]      from the repository's root

PYTHON has torch and transformers. A file stands for both dialects of config.json: they must agree to the last bit.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..helpers.gemma_text_models import SIZES, V4, V5, WINDOW, Size, miniature
from .family_goldens import LOGITS, ask

BOS = 2
LENGTHS = (3, WINDOW, WINDOW + 1, 100)
"""Tokens of the prompts: the window is just filled, just left, and left far behind."""
BACK = (84, 83, 67, 50, 33, 16, 2)
"""Positions of the longest prompt beside its last, counted from the end."""
STRIDE = 23
"""Of each position's logits every twenty-third is kept."""


def prompts(vocabulary: int) -> list[list[int]]:
    """Ids at random, the same everywhere: BOS, then ordinary tokens."""
    bits = iter(np.random.PCG64(11).random_raw(sum(LENGTHS)))
    return [[BOS] + [300 + int(next(bits)) % (vocabulary - 400) for _ in range(n - 1)] for n in LENGTHS]


def positions(values: np.ndarray) -> np.ndarray:
    """Of the prompts' logits, one position after another: the last of each prompt, and some of the longest."""
    ends = np.cumsum(LENGTHS) - 1
    return values[[*ends, *(ends[-1] - back for back in BACK)]][:, ::STRIDE]


def transformers_logits(python: str, size: Size, dialect: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = miniature(size, dialect).write(folder)
        (folder / "prompts.json").write_text(json.dumps(prompts(miniature(size, dialect).text["vocab_size"])))
        ask(python, "logits", str(path), str(folder / "prompts.json"), str(folder / "logits.npy"))
        return positions(np.load(folder / "logits.npy"))


def main(python: str, *names: str) -> None:
    for size in SIZES:
        if not names or size.name in names:
            one, other = (transformers_logits(python, size, dialect) for dialect in (V4, V5))
            if not np.array_equal(one, other):
                raise SystemExit(f"{size.name}: the dialects differ by {np.abs(one - other).max()}")
            np.save(LOGITS / f"gemma-{size.name}.npy", one)
            print(size.name, one.shape, float(np.abs(one).max()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
