"""The native encoders give ggml's bytes: every type, every instruction set of this machine, every kind of input."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from borealis_gguf.checkpoint.types import GGMLQuantizationType, row_nbytes
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.encoders import benchmark, ggml, native
from borealis_gguf.quantize.encoders.sample_weights import SAMPLE_DIGESTS

from ..helpers import kernel_inputs as inputs
from ..helpers.paths import ROOT

T = GGMLQuantizationType
TYPES = tuple(type for type in T if native.can_encode("baseline", type))
QUANTIZED = tuple(type for type in TYPES if type not in (T.F32, T.F16, T.BF16))
ISAS = native.available_isas()
EVERY = pytest.mark.parametrize("isa", ISAS)
N, N_PER_ROW = 37, 512
"""Neither rows nor blocks fill whole vectors."""


def test_this_machine_has_kernels() -> None:
    assert ISAS and ISAS[0] == "baseline", "build them: pip install . with GCC or Clang at hand"


@cache
def material() -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, np.ndarray | None]]]:
    rng = np.random.default_rng(7)
    return list(inputs.weights(rng, N, N_PER_ROW)), list(inputs.importances(rng, N_PER_ROW))


def reference(rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None) -> np.ndarray:
    out = np.empty((len(rows), row_nbytes(type, rows.shape[1])), np.uint8)
    ggml.encode(rows, type, importance, out)
    return out


def reference_or_refusal(
    rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None
) -> np.ndarray | None:
    """ggml's bytes; None for what would make ggml abort, after seeing that both sides refuse it."""
    try:
        return reference(rows, type, importance)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            native.encode(rows, type, importance, np.empty((len(rows), row_nbytes(type, rows.shape[1])), np.uint8))
        return None


def guarded(isa: str, rows: np.ndarray, type: GGMLQuantizationType, importance: np.ndarray | None) -> np.ndarray:
    """Encodes into the middle of a marked buffer, and demands that only the middle changes."""
    out, buffer = inputs.guarded((len(rows), row_nbytes(type, rows.shape[1])))
    assert native.encode_with(isa, rows, type, importance, out), "finite weights were called not finite"
    assert not inputs.overwritten(buffer), "wrote outside of its output"
    return out


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_bytes_equal_ggml_for_every_kind_of_weights(type: GGMLQuantizationType) -> None:
    kinds, importances = material()
    wrong = []
    few = 7 if type in native.LATTICES else N  # ggml takes long for these
    for kind, rows in [(kind, rows[:few]) for kind, rows in kinds]:
        for name, importance in importances:
            expected = reference_or_refusal(rows, type, importance)
            if expected is None:
                continue
            wrong += [
                (isa, kind, name) for isa in ISAS if not np.array_equal(guarded(isa, rows, type, importance), expected)
            ]
    assert not wrong


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_bf16_and_f16_rows_are_read_as_they_are(type: GGMLQuantizationType) -> None:
    """Every kind without importance and with one, another from kind to kind."""
    kinds, importances = material()
    few = 7 if type in native.LATTICES else N
    compared = {False: 0, True: 0}
    for number, (kind, rows) in enumerate(kinds):
        weighing = [importances[0], importances[1 + number % (len(importances) - 1)]]
        for source in (inputs.as_bf16(rows[:few]), inputs.as_f16(rows[:few])):
            for name, importance in weighing[ggml.requires_importance(type) :]:
                expected = reference_or_refusal(source, type, importance)
                if expected is None:
                    continue
                compared[importance is not None] += 1
                for isa in ISAS:
                    assert np.array_equal(guarded(isa, source, type, importance), expected), (isa, kind, name)
    assert compared[True] > len(kinds) / 2
    assert ggml.requires_importance(type) or compared[False] > len(kinds)


@EVERY
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_any_number_of_rows_and_blocks(isa: str, type: GGMLQuantizationType) -> None:
    block = max(32, type.block)
    rng = np.random.default_rng(3)
    for n, blocks in [(1, 1), (1, 3), (2, 1), (3, 5), (5, 3), (15, 1), (16, 1), (17, 1), (33, 1), (1, 17), (34, 5)]:
        rows = rng.standard_normal((n, blocks * block)).astype(np.float32)
        importance = rng.random(rows.shape[1]).astype(np.float32)
        for source, read in inputs.SOURCES.items():
            for weights in (importance,) if ggml.requires_importance(type) else (None, importance):
                expected = reference(read(rows), type, weights)
                assert np.array_equal(guarded(isa, read(rows), type, weights), expected), (n, blocks, source)


@EVERY
@pytest.mark.parametrize("type", (T.F32, T.F16, T.BF16), ids=lambda type: type.name)
def test_conversions_of_any_length(isa: str, type: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(4)
    for n in range(1, 40):
        rows = rng.standard_normal((1, n)).astype(np.float32)
        for source in (rows, inputs.as_bf16(rows), inputs.as_f16(rows)):
            assert np.array_equal(guarded(isa, source, type, None), reference(source, type, None)), n


Case = tuple[np.ndarray, np.ndarray | None]
"""Rows and their importance."""


@st.composite
def any_bits(draw: st.DrawFn, type: GGMLQuantizationType) -> Case:
    """Rows of any bit pattern, NaN with payloads, infinities and subnormals included, in every source format.

    Half of them are made finite; for the lattice types also so small that the kernels take them.
    """
    format = inputs.FORMATS[draw(st.sampled_from(sorted(inputs.FORMATS)))]
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 2)) * max(32, type.block)
    few = draw(st.lists(st.integers(0, np.iinfo(format.integer).max), min_size=1, max_size=24))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    noise = rng.integers(0, np.iinfo(format.integer).max, shape, dtype=format.integer, endpoint=True)
    picked = np.array(few, format.integer)[rng.integers(0, len(few), shape)]
    bits = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 1.0])), noise, picked)
    if draw(st.booleans()):
        finite = (1 << format.exponent) - 1
        bits = inputs.with_exponents_below(bits, format, format.bias + 12 if type in native.LATTICES else finite)
    importance = None
    if ggml.requires_importance(type) or draw(st.booleans()):
        importance = rng.choice(np.array([0, 1e-6, 0.5, 1, 1e2], np.float32), shape[1])
    return np.ascontiguousarray(bits).view(format.array), importance


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_any_bits_give_ggmls_bytes(type: GGMLQuantizationType) -> None:
    seen, encoded = [], []

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(any_bits(type))
    def try_case(case: Case) -> None:
        rows, importance = case
        seen.append(case)
        expected = reference_or_refusal(rows, type, importance)
        if expected is None:
            return
        out = np.empty_like(expected)
        finite = native.all_finite(rows)
        assert native.encode(rows, type, importance, out) == finite
        assert np.array_equal(out, expected)
        for isa in ISAS:
            assert native.encode_with(isa, rows, type, importance, out) == finite
            assert not finite or np.array_equal(out, expected), isa
        if finite:
            encoded.append(case)

    try_case()
    assert len(seen) >= 60
    assert len(encoded) > len(seen) / 3, "too few cases reach the kernels"
    assert len(encoded) < len(seen), "no case is left to ggml"


@pytest.mark.parametrize("source", ["float32", "bf16", "f16"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_one_special_weight_anywhere_is_reported(special: float, source: str) -> None:
    for type in QUANTIZED:
        rows = np.ones((17, 256), np.float32)
        rows[11, 133] = special
        source_rows = {"float32": rows, "bf16": inputs.as_bf16(rows), "f16": rows.astype(np.float16)}[source]
        out = np.empty((17, row_nbytes(type, 256)), np.uint8)
        for isa in ISAS:
            assert not native.encode_with(isa, source_rows, type, np.ones(256, np.float32), out), (type, isa)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_sprinkled_infinities_and_nans_are_reported_and_given_ggmls_bytes(type: GGMLQuantizationType) -> None:
    rows = inputs.sprinkled(np.random.default_rng(8), N, N_PER_ROW)
    importance = np.random.default_rng(9).random(N_PER_ROW).astype(np.float32)
    for source, read in inputs.SOURCES.items():
        for weights in (importance,) if ggml.requires_importance(type) else (None, importance):
            for isa in ISAS:
                out, buffer = inputs.guarded((N, row_nbytes(type, N_PER_ROW)))
                assert not native.encode_with(isa, read(rows), type, weights, out), (isa, source)
                assert not inputs.overwritten(buffer), (isa, source)
            expected = reference_or_refusal(read(rows), type, weights)
            assert (expected is None) == (type in native.LATTICES)
            if expected is not None:
                out = np.empty_like(expected)
                assert not native.encode(read(rows), type, weights, out)
                assert np.array_equal(out, expected), source


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_importance_that_is_not_finite_gives_ggmls_bytes(type: GGMLQuantizationType) -> None:
    rows = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float32)
    for name, importance in inputs.importances_not_finite(np.random.default_rng(6), 512):
        expected = reference_or_refusal(rows, type, importance)
        assert (expected is None) == (type in native.LATTICES), name
        if expected is not None:
            out = np.empty_like(expected)
            assert native.encode(rows, type, importance, out)
            assert np.array_equal(out, expected), name


@EVERY
def test_threads_do_not_disturb_each_other(isa: str) -> None:
    rows = benchmark.sample_rows(64, 1024, T.BF16)
    expected = {type: reference(rows, type, None) for type in (T.Q4_K, T.Q6_K, T.Q8_0)}

    def encode(type: GGMLQuantizationType) -> bool:
        return np.array_equal(guarded(isa, rows, type, None), expected[type])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, list(expected) * 8))


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_recorded_digests_are_ggmls_on_x86(type: GGMLQuantizationType) -> None:
    assert SAMPLE_DIGESTS[type.name] == native.sample_digest(type, None)
    assert {native.sample_digest(type, isa) for isa in ISAS} == {SAMPLE_DIGESTS[type.name]}


@pytest.mark.parametrize("choice", ["ggml", *ISAS])
def test_switch_picks_the_code(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, choice)
    assert native.encoder(T.Q4_K) == (None if choice == "ggml" else choice)
    rows = benchmark.sample_rows(3, 512, T.F32)
    out = np.empty((3, row_nbytes(T.Q4_K, 512)), np.uint8)
    assert native.encode(rows, T.Q4_K, None, out)
    assert np.array_equal(out, reference(rows, T.Q4_K, None))


def test_switch_refuses_unavailable_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "avx1024")
    with pytest.raises(InvalidInput, match="avx1024: this machine and installation have ggml, baseline"):
        native.encoder(T.Q4_K)


def test_a_ggml_with_other_bytes_is_used_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    native._trusted.cache_clear()
    monkeypatch.setattr(native, "_expected", lambda type: hashlib.sha256(type.name.encode()).hexdigest()[:16])
    with pytest.warns(RuntimeWarning, match=r"Q5_K: the \w+ encoder differs from ggml's") as caught:
        assert native.encoder(T.Q5_K) is None
        assert native.encoder(T.Q5_K) is None
    assert len(caught) == 1
    native._trusted.cache_clear()


@pytest.mark.parametrize(
    ("rows", "out", "importance", "message"),
    [
        (np.zeros((2, 256), np.float64), np.zeros((2, 144), np.uint8), None, "float32, float16 or uint16"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 143), np.uint8), None, r"uint8 \[2, 144\]"),
        (np.zeros((2, 256), np.float32), np.zeros((144, 2), np.uint8).T, None, "contiguous"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 144), np.uint8), np.zeros(255, np.float32), r"float32 \[256\]"),
        (np.zeros((2, 255), np.float32), np.zeros((2, 144), np.uint8), None, "255 columns do not fit Q4_K"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None, message: str
) -> None:
    for encode in (native.encode, lambda *arguments: native.encode_with("baseline", *arguments)):
        with pytest.raises((ValueError, InvalidInput), match=message):
            encode(rows, T.Q4_K, importance, out)


def test_bench_compares_bytes_and_gives_speeds() -> None:
    speeds = list(benchmark.bench_encoders([T.Q8_0, T.Q4_K], source=T.BF16, seconds=0.001, repetitions=2))
    assert [(s.type, s.importance, s.isa) for s in speeds] == [
        (type, importance, isa) for type in (T.Q8_0, T.Q4_K) for importance in (False, True) for isa in ISAS
    ]
    assert all(s.equal and s.ggml > 0 and s.native and s.ratio == s.native / s.ggml for s in speeds)


def test_install_succeeds_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}/lib", f"--build-temp={tmp_path}/temp"]
    environment = {**os.environ, "CC": str(tmp_path / "no-compiler")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "no-compiler" in result.stderr
    assert not list(tmp_path.glob("lib/**/_kernels*"))
