"""What checks cost: a model to Q4_K_M with and without the quick check, in random order, and the whole check of it.

python benchmarks/check_cost.py FOLDER --layers 34
python benchmarks/check_cost.py FOLDER --checkpoint gemma-3-270m-it --record check_cost_270m
"""

import argparse
import os
import random
import statistics
from pathlib import Path

import records
from against_llama_cpp import ours, seconds_alone, warm
from shapes import write_checkpoint

from borealis_gguf.usable_cores import usable_cores

WAYS = {"without check": ["--no-check"], "with quick check": []}
WHOLE = "the whole check"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a real one, instead of random weights")
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    records.add_option(parser, "check_cost")
    args = parser.parse_args()
    checkpoint = args.checkpoint or args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.size, args.layers)
    out = args.folder / "checked.gguf"
    command = ours("quantize", "Q4_K_M", "-m", checkpoint, "-o", out, "-j", args.jobs, "-q")
    seconds: dict[str, list[float]] = {way: [] for way in (*WAYS, WHOLE)}
    for _ in range(args.runs):
        for way in random.sample(list(WAYS), len(WAYS)):
            out.unlink(missing_ok=True)
            os.sync()
            warm(checkpoint)
            seconds[way].append(seconds_alone([*command, *WAYS[way]]))
        seconds[WHOLE].append(seconds_alone(ours("check", out, "--against", checkpoint, "-j", args.jobs, "-q")))
    out.unlink()
    plain = statistics.median(seconds["without check"])
    for way, each in seconds.items():
        took = statistics.median(each)
        print(f"{way:16} {took:6.2f} s, {took / plain:.2f} of a run without check")
    records.save(args, records.seconds_rows(seconds), {"threads": args.jobs})


if __name__ == "__main__":
    main()
