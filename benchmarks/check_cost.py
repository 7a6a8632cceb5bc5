"""What the quick check adds to a run: a whole 4b to Q4_K_M with and without it, in drawn order, in one run.

python benchmarks/check_cost.py FOLDER --layers 34
"""

import argparse
import os
import random
import statistics
from pathlib import Path

from against_llama_cpp import ours, seconds_alone, warm
from shapes import write_checkpoint

from borealis_gguf.usable_cores import usable_cores

WAYS = {"without": ["--no-check"], "with": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    args = parser.parse_args()
    checkpoint = args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.size, args.layers)
    out = args.folder / "checked.gguf"
    command = ours("quantize", "Q4_K_M", "-m", checkpoint, "-o", out, "-j", args.jobs, "-q")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.runs):
        for way in random.sample(list(WAYS), len(WAYS)):
            out.unlink(missing_ok=True)
            os.sync()
            warm(checkpoint)
            seconds[way].append(seconds_alone([*command, *WAYS[way]]))
    out.unlink()
    plain = statistics.median(seconds["without"])
    for way, each in seconds.items():
        took = statistics.median(each)
        print(f"{way:7} {took:6.2f} s, {100 * (took / plain - 1):5.1f} % more")


if __name__ == "__main__":
    main()
