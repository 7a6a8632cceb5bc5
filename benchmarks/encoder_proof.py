"""The long proof that the native encoders give ggml's bytes: python benchmarks/encoder_proof.py [--weights N] [TYPE …]

For every type, without and with importance, and for every instruction set of this machine: at least N weights (10
million by default) over all kinds of input of tests/kernel_inputs.py, as F32, BF16 and F16 rows, in row counts that
fill no vector. Prints one line a case and writes them all to encoder_proof.json beside this file.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from borealis_gguf.checkpoint.types import row_nbytes
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize import ggml, native

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import kernel_inputs as inputs

T = native.T
N, N_PER_ROW = 53, 1280


def batches(seed: int, weighted: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows of every kind with every importance (or none), the source format changing from one to the next."""
    rng = np.random.default_rng(seed)
    sources = (lambda rows: rows, inputs.as_bf16, inputs.as_f16)
    for number, (_, rows) in enumerate(inputs.weights(rng, N, N_PER_ROW)):
        for _, importance in list(inputs.importances(rng, N_PER_ROW))[1 if weighted else 0 : None if weighted else 1]:
            yield sources[(number + seed) % 3](rows), importance


def prove(type: native.T, weighted: bool, at_least: int) -> dict:
    """One case on all instruction sets: how many weights were compared, and how many bytes differed on each."""
    isas = [isa for isa in native.available_isas() if native.can_encode(isa, type)]
    wrong = dict.fromkeys(isas, 0)
    compared = refused = seed = 0
    start = time.perf_counter()
    while compared < at_least:
        for rows, importance in batches(seed, weighted):
            expected = np.empty((N, row_nbytes(type, N_PER_ROW)), np.uint8)
            try:
                ggml.encode(rows, type, importance, expected)
            except InvalidInput:
                refused += rows.size
                continue
            compared += rows.size
            for isa in isas:
                out = np.empty_like(expected)
                finite = native.encode_with(isa, rows, type, importance, out)
                wrong[isa] += int((out != expected).sum()) if finite else out.size
        seed += 1
    seconds = round(time.perf_counter() - start, 1)
    return {
        "type": type.name,
        "importance": weighted,
        "weights": compared,
        "refused": refused,
        "bytes that differ": wrong,
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--weights", type=int, default=10_000_000)
    options = parser.parse_args()
    names = options.types or [type.name for type in T if native.can_encode("baseline", type)]
    cases = []
    for type in map(T.__getitem__, names):
        for weighted in (False, True):
            if weighted or not ggml.requires_importance(type):
                cases.append(prove(type, weighted, options.weights))
                print(json.dumps(cases[-1]), flush=True)
    path = Path(__file__).with_name("encoder_proof.json")
    done = {(c["type"], c["importance"]): c for c in json.loads(path.read_text())["cases"]} if path.exists() else {}
    done.update({(c["type"], c["importance"]): c for c in cases})
    machine = f"{platform.machine()} {', '.join(native.available_isas())}"
    record = {"machine": machine, "cases": list(done.values())}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(sum(case["bytes that differ"].values()) for case in cases))


if __name__ == "__main__":
    sys.exit(main())
