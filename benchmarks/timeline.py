"""Where a run's time goes: seconds each worker spent reading, encoding, checking and writing, and the rest.

python benchmarks/timeline.py SOURCE PRESET... [-j JOBS] [-o FOLDER]
"""

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from borealis_gguf import api
from borealis_gguf.pipeline import execute as executor
from borealis_gguf.pipeline.outputs import PartialFile
from borealis_gguf.pipeline.plan import Codec

SPENT: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))


def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            SPENT[threading.current_thread().name][what] += time.perf_counter() - began

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("presets", nargs="+")
    parser.add_argument("-j", "--jobs", type=int, default=executor.available_cores())
    parser.add_argument("-o", "--output", type=Path, default=Path())
    parser.add_argument("--imatrix", type=Path)
    args = parser.parse_args()
    codec = Codec(
        timed("encode", api.CODEC.encode),
        api.CODEC.decode,
        timed("check", api.CODEC.valid),
        timed("merge", api.CODEC.add_product),
    )
    executor._Worker.read = timed("read", executor._Worker.read)
    executor._Worker.write = timed("write", executor._Worker.write)
    PartialFile.flush = timed("flush", PartialFile.flush)
    PartialFile.sync = timed("sync", PartialFile.sync)
    began = time.perf_counter()
    plans = api.plan_quantize(args.source, args.presets, args.output, imatrix=args.imatrix)
    planned = time.perf_counter()
    executor.execute(plans, codec, jobs=args.jobs)
    wall = time.perf_counter() - planned
    print(f"plan {planned - began:.2f} s, execute {wall:.2f} s")
    for thread, parts in sorted(SPENT.items()):
        shown = ", ".join(f"{what} {seconds:.2f}" for what, seconds in sorted(parts.items()))
        print(f"{thread}: {shown}, rest {wall - sum(parts.values()):.2f}")


if __name__ == "__main__":
    main()
