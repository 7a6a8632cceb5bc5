"""A BF16 GGUF to Q4_K_M with an importance matrix: ours against llama_model_quantize, same threads, in one run.

    python benchmarks/quantize_imatrix.py FOLDER --layers 12

Then, on the same files, how far ours is from what disk and memory allow. (`copy_rate.py` is about `convert`.)
"""

import argparse
import statistics
import sys
from pathlib import Path

import gguf
import numpy as np
import records
from against_llama_cpp import QUANTIZE, Run, measure, ours, run_rows, same_tensors, warm
from machine import limits, rates
from shapes import write_checkpoint

from borealis_gguf import execute, plan_convert
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.usable_cores import usable_cores


def write_imatrix(path: Path, source: Path) -> None:
    """An importance matrix for every matrix of `source` but the embedding, of plausible spread."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 100)
    writer.add_uint32("imatrix.chunk_size", 512)
    random = np.random.default_rng(3)
    for name, slice in read_gguf(source).tensors.items():
        if len(slice.shape) == 2 and name != "token_embd.weight":
            writer.add_tensor(f"{name}.in_sum2", random.gamma(0.5, 2, (1, slice.shape[-1])).astype(np.float32))
            writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def medians(what: str, runs: list[Run]) -> Run:
    return Run(
        what,
        statistics.median(r.seconds for r in runs),
        statistics.median(r.peak_mb for r in runs),
        runs[0].written_mb,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="4b")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    records.add_option(parser, "quantize_imatrix")
    args = parser.parse_args()
    checkpoint = args.folder / f"{args.size}-{args.layers}-layers"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.size, args.layers)
    source, imatrix = args.folder / "source-BF16.gguf", args.folder / "imatrix.gguf"
    execute([plan_convert(str(checkpoint), source, outtype="bf16")])
    write_imatrix(imatrix, source)
    mine, theirs = args.folder / "ours.gguf", args.folder / "theirs.gguf"
    columns: dict[str, list[Run]] = {"llama.cpp": [], "ours": [], "ours, 1 job": []}
    for _ in range(args.runs):
        warm(source)
        theirs.unlink(missing_ok=True)
        command = [sys.executable, "-c", QUANTIZE, str(source), str(theirs), "15", str(args.jobs), str(imatrix)]
        columns["llama.cpp"].append(measure("llama.cpp", command, theirs))
        for what, jobs in (("ours", args.jobs), ("ours, 1 job", 1)):
            warm(source)
            mine.unlink(missing_ok=True)
            quantize = ours("quantize", "Q4_K_M", "-m", source, "-o", mine, "--imatrix", imatrix, "-j", jobs)
            columns[what].append(measure(what, quantize, mine))
    result = {what: medians(what, runs) for what, runs in columns.items()}
    for run in result.values():
        print(f"{run.what:22} {run.seconds:8.2f} s  {run.peak_mb:8.0f} MB peak  {run.written_mb:8.0f} MB written")
    print(f"ours is {result['llama.cpp'].seconds / result['ours'].seconds:.1f} times faster,", end=" ")
    print(f"two jobs against one: {result['ours, 1 job'].seconds / result['ours'].seconds:.2f}")
    same = same_tensors(mine, theirs)
    print("the same tensors:", same)
    seconds = result["ours"].seconds
    print(limits(source.stat().st_size, mine.stat().st_size, rates(args.folder, source), seconds))
    rows = [row for runs in columns.values() for row in run_rows(runs)]
    records.save(args, rows, {"the same tensors": same, "threads": args.jobs})


if __name__ == "__main__":
    main()
