"""What planning takes: wall time, processor time and peak memory of `plan_quantize`, each run in a fresh process.

python benchmarks/plan_cost.py CHECKPOINT… --runs 7
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

PLAN = """
import resource, sys, time
began = time.perf_counter()
from borealis_gguf import api
api.plan_quantize(sys.argv[1], ["Q4_K_M"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    for checkpoint in args.checkpoint:
        command = [sys.executable, "-c", PLAN, str(checkpoint)]
        runs = [
            [float(number) for number in subprocess.run(command, capture_output=True, check=True).stdout.split()]
            for _ in range(args.runs)
        ]
        seconds, processor, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{checkpoint.name}: {seconds:.2f} s, {processor:.2f} s of processor, {peak:.0f} MB ({args.runs} runs)")


if __name__ == "__main__":
    main()
