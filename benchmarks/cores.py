"""What a second core brings to a whole command, plan and quick check with it: in random order, in one run. Linux.

    python benchmarks/cores.py FOLDER --layers 34 --presets Q4_K_M Q5_K_M

"one core" may use one core for all it does, and so has one worker; "one worker" has both cores for what workers do not
do; "two" is the command as it is.
"""

import argparse
import os
import random
import shutil
import statistics
from pathlib import Path

import records
from against_llama_cpp import ours, seconds_alone, warm
from shapes import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--presets", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--runs", type=int, default=5)
    records.add_option(parser, "cores")
    args = parser.parse_args()
    checkpoint = args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.size, args.layers)
    out, cores = args.folder / "cores", sorted(os.sched_getaffinity(0))[:2]
    ways = {"one core": (cores[:1], []), "one worker": (cores, ["-j", 1]), "two": (cores, [])}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.runs):
        for way in random.sample(list(ways), len(ways)):
            allowed, options = ways[way]
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            warm(checkpoint)
            os.sched_setaffinity(0, allowed)  # the child's, too
            command = ours("quantize", *args.presets, "-m", checkpoint, "-o", out, "-q", *options)
            seconds[way].append(seconds_alone(command))
            os.sched_setaffinity(0, cores)
    shutil.rmtree(out)
    two = statistics.median(seconds["two"])
    for way, times in seconds.items():
        took = statistics.median(times)
        print(f"{way:10} {took:6.2f} s, {took / two:.2f} times as long as with two")
    records.save(args, records.seconds_rows(seconds))


if __name__ == "__main__":
    main()
