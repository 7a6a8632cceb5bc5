"""Records of benchmarks: benchmarks/records/NAME.json, from which `write_docs.py` makes what docs/ shows.

A benchmark calls `add_option(parser, NAME)`, collects rows, and ends with `save(args, rows)`, which writes the record
if `--record` was given. A row is one measured quantity: what was measured, on which side (ours, llama.cpp's …), its
unit, how often, the median, and the least and the most.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from borealis_gguf.quantize.encoders import native

RECORDS = Path(__file__).with_name("records")
Row = dict[str, Any]


def row(what: str, side: str, unit: str, values: Sequence[float]) -> Row:
    """One measured quantity from its single measurements, with six significant digits."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"what": what, "side": side, "unit": unit, "n": len(values)} | {k: _rounded(v) for k, v in figures.items()}


def add_option(parser: argparse.ArgumentParser, name: str) -> None:
    text = f"write the figures to benchmarks/records/NAME.json, for docs/; default: {name}"
    parser.add_argument("--record", metavar="NAME", nargs="?", const=name, help=text)


def save(args: argparse.Namespace, rows: Iterable[Row], facts: dict[str, Any] | None = None) -> None:
    """Write the record of a run, if `--record` asks for it. `facts` are results without a unit, such as equal bytes."""
    if args.record is None:
        return
    record = {
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "version": version("borealis-gguf"),
        "machine": machine(),
        "rows": list(rows),
        "facts": facts or {},
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{args.record}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recorded in {path}; now: make docs")


def seconds_rows(seconds: Mapping[str, Sequence[float]], what: str = "time") -> list[Row]:
    """A row for each side of a comparison of times."""
    return [row(what, side, "s", values) for side, values in seconds.items()]


def command(argv: Sequence[str]) -> str:
    """The command line as documents may show it: local folders are left out."""
    script, *options = argv
    words = [f"benchmarks/{Path(script).name}", *(re.sub(r"(?:[^\s/]*/)+(?=[^\s/])", "", option) for option in options)]
    return " ".join(["python", *(f'"{word}"' if " " in word else word for word in words)])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu(),
        "simd": native.available_isas()[-1:],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "os": _system(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _memory_gb() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform(terse=True)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
