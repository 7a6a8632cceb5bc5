"""`convert --outtype bf16`, which moves a checkpoint's bytes, against cp: warm cache, in turn, in one run.

    python benchmarks/copy_rate.py FOLDER --layers 12

cp leaves the bytes in memory, for the system to put on the disk later; `convert` waits for the disk before a file gets
its name. So both are measured with and without waiting, and the executor alone too: planning takes the same second
whatever the size of the model.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import records
from against_llama_cpp import measure, ours, warm
from shapes import write_checkpoint

from borealis_gguf.usable_cores import usable_cores

NO_WAIT = "from borealis_gguf.pipeline import atomic_output; atomic_output._fsync = lambda fd: None\n"
CONVERT = "from borealis_gguf.cli.main import main; main()"
EXECUTE = """
import sys, time
from pathlib import Path
from borealis_gguf import api
plan = api.plan_convert(sys.argv[1], Path(sys.argv[2]), outtype="bf16")
began = time.perf_counter()
api.execute([plan], jobs=int(sys.argv[3]), check=False)
Path(sys.argv[4]).write_text(str(time.perf_counter() - began), encoding="utf-8")
"""


def executed(command: list[str], note: Path) -> float:
    """Seconds of the executor alone, which the child has noted."""
    measure("executor", command)
    return float(note.read_text(encoding="utf-8"))


def rotated(items: list[Any], by: int) -> list[Any]:
    """Others come first each time: what the last one left in memory is not always the same one's burden."""
    by %= len(items)
    return items[by:] + items[:by]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    records.add_option(parser, "copy_rate")
    args = parser.parse_args()
    checkpoint = args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.size, args.layers)
    weights = sorted(checkpoint.glob("*.safetensors"))
    nbytes = sum(path.stat().st_size for path in weights)
    out, note = args.folder / "copy", args.folder / "seconds"
    cat = f'cat "$@" > "{out}"' if len(weights) > 1 else f'cp "$1" "{out}"'
    whole = ours("convert", checkpoint, "--outtype", "bf16", "-o", out, "-j", args.jobs, "-q")[3:]
    alone = [str(checkpoint), str(out), str(args.jobs), str(note)]
    commands = {
        "cp": ["sh", "-c", cat, "cp", *map(str, weights)],
        "cp and sync": ["sh", "-c", f'{cat} && sync "{out}"', "cp", *map(str, weights)],
        "convert": [sys.executable, "-c", CONVERT, *whole],
        "convert --no-check": [sys.executable, "-c", CONVERT, *whole, "--no-check"],
        "convert, not waiting": [sys.executable, "-c", NO_WAIT + CONVERT, *whole, "--no-check"],
        "executor": [sys.executable, "-c", EXECUTE, *alone],
        "executor, not waiting": [sys.executable, "-c", NO_WAIT + EXECUTE, *alone],
    }
    seconds: dict[str, list[float]] = {what: [] for what in commands}
    for run in range(args.runs):
        for what, command in rotated(list(commands.items()), run):
            out.unlink(missing_ok=True)
            warm(*weights)
            alone_too = what.startswith("executor")
            seconds[what].append(executed(command, note) if alone_too else measure(what, command).seconds)
    out.unlink()
    note.unlink()
    print(f"{nbytes / 1e9:.2f} GB, medians of {args.runs}")
    plain, synced = (statistics.median(seconds[what]) for what in ("cp", "cp and sync"))
    for what, times in seconds.items():
        took = statistics.median(times)
        ratios = f"{plain / took:.2f} of cp, {synced / took:.2f} of cp and sync"
        print(f"{what:22} {took:6.2f} s  {nbytes / took / 1e9:5.2f} GB/s  {ratios}")
    records.save(args, records.seconds_rows(seconds), {"GB moved": round(nbytes / 1e9, 2), "threads": args.jobs})


if __name__ == "__main__":
    main()
