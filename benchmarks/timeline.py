"""Where a run's time goes: what each worker does when, what is left over, and what more workers bring.

    python benchmarks/timeline.py SOURCE PRESET... -o FOLDER [-j 1 2] [--runs 3] [--cold] [--trace timeline.json]

For each number of jobs: medians of seconds and, of the last run, what each thread spent on reading, encoding, checking
and writing, and how many pages it had to be given. `--trace` writes the last run as Chrome and Perfetto show it.
"""

import argparse
import json
import resource
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
from machine import forget, limits, rates

from borealis_gguf import api
from borealis_gguf.pipeline.atomic_output import PartialFile
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.plan import Codec, FilePlan
from borealis_gguf.pipeline.reader import TaskReader
from borealis_gguf.pipeline.writer import OutputWriter
from borealis_gguf.usable_cores import usable_cores

Span = tuple[str, str, float, float]
"""Thread, what it did, from when, for how long."""
SPANS: list[Span] = []
FAULTS: dict[str, int] = defaultdict(int)


def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        name, faults, began = threading.current_thread().name, page_faults(), time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            SPANS.append((name, what, began, time.perf_counter() - began))
            FAULTS[name] += page_faults() - faults

    return call


def page_faults() -> int:
    """Of this thread, where the system counts by thread."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_minflt


def once(plans: list[FilePlan], codec: Codec, jobs: int) -> float:
    """Seconds of the executor; its spans stand in SPANS."""
    SPANS.clear()
    FAULTS.clear()
    for plan in plans:
        plan.path.unlink(missing_ok=True)
    began = time.perf_counter()
    execute(plans, codec, jobs=jobs)
    return time.perf_counter() - began


def shown(wall: float) -> str:
    """What each thread did in the last run."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for thread, what, _, seconds in SPANS:
        spent[thread][what] += seconds
    lines = []
    for thread, parts in sorted(spent.items()):
        each = ", ".join(f"{what} {seconds:.2f}" for what, seconds in sorted(parts.items()))
        lines.append(f"  {thread}: {each}, rest {wall - sum(parts.values()):.2f} s; {FAULTS[thread]} page faults")
    return "\n".join(lines)


def trace() -> str:
    """The last run as trace events, in microseconds."""
    threads = sorted({span[0] for span in SPANS})
    start = min(span[2] for span in SPANS)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": n, "args": {"name": name}} for n, name in enumerate(threads)
    ]
    for thread, what, began, seconds in SPANS:
        place = {"pid": 1, "tid": threads.index(thread)}
        events.append({"ph": "X", "name": what, "ts": 1e6 * (began - start), "dur": 1e6 * seconds, **place})
    return json.dumps({"traceEvents": events})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("presets", nargs="+")
    parser.add_argument("-j", "--jobs", type=int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("-o", "--output", type=Path, default=Path())
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="have the system forget the source before each run")
    parser.add_argument("--trace", type=Path, metavar="FILE")
    records.add_option(parser, "timeline")
    args = parser.parse_args()
    codec = Codec(
        timed("encode", api.CODEC.encode),
        api.CODEC.decode,
        timed("check", api.CODEC.valid),
        timed("merge", api.CODEC.add_product),
    )
    TaskReader.read_bytes = timed("read", TaskReader.read_bytes)
    OutputWriter.write = timed("write", OutputWriter.write)
    PartialFile.flush = timed("flush", PartialFile.flush)
    PartialFile.sync = timed("sync", PartialFile.sync)
    began = time.perf_counter()
    plans = list(api.plan_quantize(args.source, args.presets, args.output, imatrix=args.imatrix))
    print(f"plan {time.perf_counter() - began:.2f} s")
    sources = sorted({slice.path for plan in plans for t in plan.tensors for slice in t.tensor.source.slices()})
    seconds: dict[int, list[float]] = {jobs: [] for jobs in args.jobs}
    details: dict[int, str] = {}
    for _ in range(args.runs):
        for jobs, walls in seconds.items():
            if args.cold:
                forget(*sources)
            walls.append(once(plans, codec, jobs))
            details[jobs] = shown(walls[-1])
    middle = {jobs: statistics.median(walls) for jobs, walls in seconds.items()}
    for jobs, wall in middle.items():
        gain = middle[args.jobs[0]] / wall
        print(f"{jobs} jobs: {wall:.2f} s of {', '.join(f'{s:.2f}' for s in sorted(seconds[jobs]))}; {gain:.2f} times")
        print(details[jobs])
    if args.trace:
        args.trace.write_text(trace(), encoding="utf-8")
    read, written = sum(path.stat().st_size for path in sources), sum(plan.size for plan in plans)
    print(limits(read, written, rates(plans[0].path.parent, sources[0]), min(middle.values())))
    by_jobs = {f"{jobs} worker{'s'[: jobs > 1]}": walls for jobs, walls in seconds.items()}
    records.save(args, records.seconds_rows(by_jobs, "executor"))


if __name__ == "__main__":
    main()
