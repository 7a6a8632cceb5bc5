"""The record of the long proof is about the kernels as they are, and without a fault."""

import json
import runpy

import numpy as np
import pytest

from borealis_gguf.checkpoint.types import row_nbytes
from borealis_gguf.quantize.encoders import ggml, native

from ..helpers import kernel_build
from ..helpers.paths import ROOT

T = native.T
PROOF = ROOT / "benchmarks" / "encoder_proof.py"
RECORD = json.loads(PROOF.with_suffix(".json").read_text(encoding="utf-8"))
AGAIN = "pip install . && python benchmarks/encoder_proof.py"


def test_the_proof_is_of_these_kernels() -> None:
    assert RECORD["kernels sha256"] == kernel_build.digest(), (
        f"the kernels or their flags have changed since they were proven; prove them again (ten minutes): {AGAIN}"
    )


def test_the_proof_has_every_type_without_and_with_importance() -> None:
    proven = [(case["type"], case["importance"]) for case in RECORD["cases"]]
    types = [type for type in T if native.can_encode("baseline", type)]
    wanted = {(t.name, weighted) for t in types for weighted in (False, True)}
    wanted -= {(t.name, False) for t in types if ggml.requires_importance(t)}
    assert len(proven) == len(set(proven)) and set(proven) == wanted, f"cases are missing: {AGAIN}"


def test_the_proof_found_no_byte_that_differs() -> None:
    for case in RECORD["cases"]:
        assert set(case["bytes that differ"]) == set(native.ISAS), case
        assert not any(case["bytes that differ"].values()), case
        assert not any(case["bytes changed around the output"].values()), case
        assert case["weights"] >= 10_000_000 and case["seeds"] >= 3 and case["reported as not finite"] > 0, case
    assert RECORD["ggml"]["version"] and len(RECORD["ggml"]["library sha256"]) == 64


def test_the_proof_counts_every_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast type without a fault; then with a wrong byte and one beside the output; then with a NaN not reported."""
    proof = runpy.run_path(str(PROOF))
    batches = [rows for seed in range(3) for rows, _ in proof["batches"](seed, True)]
    finite = sum(map(native.all_finite, batches))
    assert 0.9 < finite / len(batches) < 1
    right = proof["prove"](T.Q8_0, True, 1)
    assert right["seeds"] == 3 and right["weights"] == finite * batches[0].size and proof["faults"](right) == 0
    encode_with = native.encode_with

    def spoiling(isa: str, rows: np.ndarray, type: native.T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        result = encode_with(isa, rows, type, importance, out)
        out[0, 0] ^= 1
        assert isinstance(out.base, np.ndarray)
        out.base[-1] ^= 1
        return result

    monkeypatch.setattr(native, "encode_with", spoiling)
    wrong = proof["prove"](T.Q8_0, True, 1)
    assert set(wrong["bytes that differ"].values()) == {finite}
    assert set(wrong["bytes changed around the output"].values()) == {len(batches)}
    monkeypatch.setattr(native, "encode_with", lambda *arguments: encode_with(*arguments) or True)
    blind = proof["prove"](T.Q8_0, True, 1)
    n, n_per_row = batches[0].shape
    assert set(blind["bytes that differ"].values()) == {(len(batches) - finite) * n * row_nbytes(T.Q8_0, n_per_row)}
