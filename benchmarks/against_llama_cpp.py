"""Ours and llama.cpp's way from a checkpoint to Q4_K_M, side by side in one run: wall time, peak memory, bytes written.

    python benchmarks/against_llama_cpp.py FOLDER --layers 6 --converter "python /path/to/convert_hf_to_gguf.py"

llama.cpp's way is convert_hf_to_gguf.py (which lies in llama-cpp-python's source distribution and needs torch and
transformers) to a BF16 file, then llama_model_quantize of the installed llama-cpp-python with the same number of
threads. FOLDER holds the checkpoint that is made (again only when it is missing) and all outputs, which are compared.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import records
from machine import BLOCK, Watched

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.usable_cores import usable_cores

PRESETS = ["Q4_K_M", "Q5_K_M", "Q6_K"]
QUANTIZE = """
import ctypes, sys, llama_cpp
source, out, ftype, threads, imatrix = sys.argv[1:6]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(ftype), int(threads)
if imatrix:
    from pathlib import Path
    from borealis_gguf.checkpoint.imatrix import read_imatrix
    entries = read_imatrix(Path(imatrix)).entries
    floats = ctypes.POINTER(ctypes.c_float)
    rows = [(name.encode(), values.ctypes.data_as(floats), values.size) for name, values in entries.items()]
    params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))
"""


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall time, the peak of its and its children's memory together, bytes of its output."""

    what: str
    seconds: float
    peak_mb: float
    written_mb: float


def measure(what: str, command: list[str], out: Path | None = None, env: dict[str, str] | None = None) -> Run:
    began = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    with Watched(child) as watched:
        complaints = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{what} failed: {complaints.decode('utf-8', 'replace')[-2000:]}")
    written = out.stat().st_size if out and out.is_file() else 0
    if out and out.is_dir():
        written = sum(path.stat().st_size for path in out.glob("*.gguf"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(what, seconds, max(watched.peak, usage.ru_maxrss * unit) / 1e6, written / 1e6)


def run_rows(runs: Sequence[Run]) -> list[records.Row]:
    """Time, memory and output of one side, for a record."""
    what = runs[0].what
    return [
        records.row("time", what, "s", [run.seconds for run in runs]),
        records.row("peak memory", what, "MB", [run.peak_mb for run in runs]),
        records.row("written", what, "MB", [run.written_mb for run in runs]),
    ]


def seconds_alone(command: list[str]) -> float:
    """Seconds that a command takes with nobody beside it, not even to watch its memory and that of its children."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def ours(*args: str | Path | int) -> list[str]:
    return [sys.executable, "-c", "from borealis_gguf.cli.main import main; main()", *map(str, args)]


def same_tensors(a: Path, b: Path) -> bool:
    """Whether both files hold the same bytes for every tensor."""
    left, right = read_gguf(a), read_gguf(b)
    if list(left.tensors) != list(right.tensors):
        return False
    with a.open("rb") as one, b.open("rb") as two:
        for name, slice in left.tensors.items():
            one.seek(slice.offset)
            two.seek(right.tensors[name].offset)
            rest = slice.nbytes
            while rest:
                if one.read(min(rest, BLOCK)) != two.read(min(rest, BLOCK)):
                    return False
                rest -= min(rest, BLOCK)
    return True


def keys_that_differ(a: Path, b: Path) -> list[str]:
    """Of the metadata: llama.cpp's converter, for one, takes a Gemma without tokenizer.model for byte-level BPE."""
    left, right = ({kv.key: kv for kv in read_gguf(path).kv} for path in (a, b))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def warm(*paths: Path) -> None:
    """Read the files once, so that both sides find them in the page cache."""
    for path in paths:
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            with file.open("rb") as handle:
                while handle.read(1 << 24):
                    pass


def once(folder: Path, checkpoint: Path, converter: str, jobs: int, encoders: str | None) -> list[Run]:
    env = {"BOREALIS_GGUF_ENCODERS": encoders} if encoders else {}
    master, theirs, mine = folder / "theirs-BF16.gguf", folder / "theirs-Q4_K_M.gguf", folder / "ours-Q4_K_M.gguf"
    several = folder / "several"
    shutil.rmtree(several, ignore_errors=True)
    several.mkdir()
    for path in (master, theirs, mine):
        path.unlink(missing_ok=True)
    warm(checkpoint)
    convert = [*shlex.split(converter), str(checkpoint), "--outtype", "bf16", "--outfile", str(master)]
    runs = [measure("llama.cpp convert", convert, master)]
    warm(master)
    quantize = [sys.executable, "-c", QUANTIZE, str(master), str(theirs), "15", str(jobs), ""]
    runs.append(measure("llama.cpp quantize", quantize, theirs))
    warm(checkpoint)
    runs.append(
        measure("ours, one pass", ours("quantize", "Q4_K_M", "-m", checkpoint, "-o", mine, "-j", jobs), mine, env)
    )
    command = ours("quantize", *PRESETS, "-m", checkpoint, "-o", several, "-j", jobs)
    runs.append(measure("ours, three presets", command, several, env))
    for preset in PRESETS:
        out = folder / f"single-{preset}.gguf"
        runs.append(
            measure(f"ours, {preset}", ours("quantize", preset, "-m", checkpoint, "-o", out, "-j", jobs), out, env)
        )
        out.unlink()
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--converter", required=True, help="command that runs llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    parser.add_argument("--encoders", help="ggml, baseline, avx2 or avx512; default: the fastest")
    parser.add_argument("--json", action="store_true")
    records.add_option(parser, "against_llama_cpp")
    args = parser.parse_args()
    checkpoint = args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        from shapes import write_checkpoint

        write_checkpoint(checkpoint, args.size, args.layers)
    every = [once(args.folder, checkpoint, args.converter, args.jobs, args.encoders) for _ in range(args.runs)]
    medians = [
        Run(
            column[0].what,
            statistics.median(run.seconds for run in column),
            statistics.median(run.peak_mb for run in column),
            column[0].written_mb,
        )
        for column in zip(*every, strict=True)
    ]
    if args.json:
        print(json.dumps([asdict(run) for run in medians]))
        return
    for run in medians:
        print(f"{run.what:22} {run.seconds:8.2f} s  {run.peak_mb:8.0f} MB peak  {run.written_mb:8.0f} MB written")
    convert, quantize, one, three, *singles = medians
    both = convert.seconds + quantize.seconds
    print(f"one pass takes {one.seconds / both:.3f} of convert + quantize ({both / one.seconds:.1f} times faster),")
    print(f"{one.peak_mb / max(convert.peak_mb, quantize.peak_mb):.3f} of the memory;")
    print(f"three presets in one pass take {three.seconds / sum(run.seconds for run in singles):.2f} of three runs")
    outputs = args.folder / "ours-Q4_K_M.gguf", args.folder / "theirs-Q4_K_M.gguf"
    same, keys = same_tensors(*outputs), ", ".join(keys_that_differ(*outputs)) or "none"
    print(f"the same tensors: {same}; keys that differ: {keys}")
    rows = [row for column in zip(*every, strict=True) for row in run_rows(column)]
    records.save(args, rows, {"the same tensors": same, "keys that differ": keys, "threads": args.jobs})


if __name__ == "__main__":
    main()
