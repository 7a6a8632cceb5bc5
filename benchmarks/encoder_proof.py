"""The long proof that the native encoders give ggml's bytes: python benchmarks/encoder_proof.py [--weights N] [TYPE …]

For every type, without and with importance, and for every instruction set of this machine: at least N weights (10
million by default) over all kinds of input of tests/helpers/kernel_inputs.py, in row counts that fill no vector. Every
kind meets every importance as F32, BF16 and F16 rows. Prints one line a case and writes them all to encoder_proof.json
beside this file, with the digest of the kernels that were tried and the ggml they were compared with. Cases of other
kernels or another ggml are dropped from the record. Two to ten minutes.
"""

import argparse
import ctypes
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from borealis_gguf.checkpoint.types import row_nbytes
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.encoders import ggml, native

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers import kernel_build
from tests.helpers import kernel_inputs as inputs

T = native.T
RECORD = Path(__file__).with_name("encoder_proof.json")
N_PER_ROW = 1280
N = {False: 53, True: 17}
"""Rows of a batch, without and with importance, of which there are many kinds."""


def batches(seed: int, weighted: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows of every kind with every importance (or none), the source format changing from one to the next; three
    seeds in a row give every kind in every format."""
    rng = np.random.default_rng(seed)
    n, sources = N[weighted], tuple(inputs.SOURCES.values())
    kinds = [*inputs.weights(rng, n, N_PER_ROW), ("sprinkled", inputs.sprinkled(rng, n, N_PER_ROW))]
    for number, (_, rows) in enumerate(kinds):
        source = sources[(number + seed) % len(sources)](rows)
        for _, importance in inputs.importances(rng, N_PER_ROW):
            if (importance is not None) == weighted:
                yield source, importance


def prove(type: native.T, weighted: bool, at_least: int) -> dict:
    """One case on all instruction sets: how many weights were compared, and how many bytes differed on each.

    Weights that are not finite must be reported, and are then ggml's matter: only their output's surroundings count.
    """
    isas = [isa for isa in native.available_isas() if native.can_encode(isa, type)]
    wrong, around = dict.fromkeys(isas, 0), dict.fromkeys(isas, 0)
    compared = refused = reported = seed = 0
    start = time.perf_counter()
    while compared < at_least or seed < len(inputs.SOURCES):
        for rows, importance in batches(seed, weighted):
            expected = np.empty((len(rows), row_nbytes(type, N_PER_ROW)), np.uint8)
            finite = native.all_finite(rows)
            try:
                if finite:
                    ggml.encode(rows, type, importance, expected)
            except InvalidInput:
                refused += rows.size
                continue
            compared += rows.size if finite else 0
            reported += 0 if finite else rows.size
            for isa in isas:
                out, buffer = inputs.guarded(expected.shape)
                if native.encode_with(isa, rows, type, importance, out) != finite:
                    wrong[isa] += out.size
                elif finite:
                    wrong[isa] += int((out != expected).sum())
                around[isa] += inputs.overwritten(buffer)
        seed += 1
    return {
        "type": type.name,
        "importance": weighted,
        "seeds": seed,
        "weights": compared,
        "refused": refused,
        "reported as not finite": reported,
        "bytes that differ": wrong,
        "bytes changed around the output": around,
        "seconds": round(time.perf_counter() - start, 1),
    }


def faults(case: dict) -> int:
    return sum(case["bytes that differ"].values()) + sum(case["bytes changed around the output"].values())


def subject() -> dict:
    """What the proof is about: the machine, the kernels and the ggml they are compared with."""
    library = ggml.library()
    library.ggml_version.restype = library.ggml_commit.restype = ctypes.c_char_p
    return {
        "machine": f"{platform.machine()} {', '.join(native.available_isas())}",
        "kernels sha256": kernel_build.digest(),
        "ggml": {
            "version": library.ggml_version().decode(),
            "commit": library.ggml_commit().decode(),
            "llama-cpp-python": version("llama-cpp-python"),
            "library sha256": hashlib.sha256(Path(library._name).read_bytes()).hexdigest(),
        },
    }


def refuse_old_kernels() -> None:
    """The library tried is the installed one: it must be younger than the sources whose digest is recorded."""
    built = max(path.stat().st_mtime for path in Path(native.__file__).parent.glob("_kernels*"))
    if built < max(path.stat().st_mtime for path in kernel_build.SOURCES):
        sys.exit("the installed kernels are older than quantize/kernels: pip install . first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--weights", type=int, default=10_000_000)
    options = parser.parse_args()
    refuse_old_kernels()
    about = subject()
    names = options.types or [type.name for type in T if native.can_encode("baseline", type)]
    cases = []
    for type in map(T.__getitem__, names):
        for weighted in (False, True):
            if weighted or not ggml.requires_importance(type):
                cases.append(prove(type, weighted, options.weights))
                print(json.dumps(cases[-1]), flush=True)
    old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    kept = old["cases"] if all(old.get(key) == value for key, value in about.items()) else []
    done = {(case["type"], case["importance"]): case for case in [*kept, *cases]}
    RECORD.write_text(json.dumps({**about, "cases": list(done.values())}, indent=1) + "\n", encoding="utf-8")
    return int(any(map(faults, cases)))


if __name__ == "__main__":
    sys.exit(main())
