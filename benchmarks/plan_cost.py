"""What planning takes: wall time, processor time and peak memory of `plan_quantize`, each run in a fresh process.

python benchmarks/plan_cost.py CHECKPOINT… --runs 7
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import records

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
    records.add_option(parser, "plan_cost")
    args = parser.parse_args()
    rows: list[records.Row] = []
    for checkpoint in args.checkpoint:
        command = [sys.executable, "-c", PLAN, str(checkpoint)]
        runs = [
            [float(number) for number in subprocess.run(command, capture_output=True, check=True).stdout.split()]
            for _ in range(args.runs)
        ]
        columns = list(zip(*runs, strict=True))
        seconds, processor, peak = map(statistics.median, columns)
        quantities = (("time", "s"), ("processor time", "s"), ("peak memory", "MB"))
        rows += [
            records.row(what, checkpoint.name, unit, c) for (what, unit), c in zip(quantities, columns, strict=True)
        ]
        print(f"{checkpoint.name}: {seconds:.2f} s, {processor:.2f} s of processor, {peak:.0f} MB ({args.runs} runs)")
    records.save(args, rows)


if __name__ == "__main__":
    main()
