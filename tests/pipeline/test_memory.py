"""Memory is bounded by workers and chunks, not by the model: shown on a checkpoint of 27b's widths made of holes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf.checkpoint.gguf import read_gguf

from ..cli.test_cli import run
from ..convert.test_families import BLOOM, MISTRAL
from ..helpers.lora_adapters import lora_of
from ..helpers.paths import ROOT
from ..helpers.sparse_models import write_sparse_checkpoint

SHAPES = ROOT / "benchmarks" / "shapes.py"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
MEASURED = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a child's peak memory")


COMMAND = f"""
import resource, sys
sys.path.append({str(ROOT / "tests" / "helpers")!r})
from memory_limits import peak_memory
from borealis_gguf.cli.main import main
try:
    main()
finally:
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(max(peak_memory(), children))
"""
"""The command line; its last word is its peak memory, or its children's. (What wait4 tells of a child counts what this
process had when the child began.)"""


def peak(*args: str | Path) -> int:
    """The most memory, in bytes, that this command took in a process of its own, which must succeed."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *map(str, args), "-q"], env=ENV, capture_output=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@MEASURED
def test_a_27b_shape_stays_under_600_mb(tmp_path: Path) -> None:
    checkpoint = tmp_path / "borealis-27b"
    command = [sys.executable, str(SHAPES), "27b", str(checkpoint), "--sparse", "--layers", "1"]
    subprocess.run(command, env=ENV, check=True)
    assert peak("quantize", "Q4_K_M", "-m", checkpoint, "-o", tmp_path) < 600_000_000
    assert (tmp_path / "borealis-27b-Q4_K_M.gguf").stat().st_size > 1_000_000_000


BOUND = 150_000_000
"""Of what two workers may take, Python and libraries included, whatever the matrices. Seen: 57 to 72 MB."""

BLOOM_7B = {"hidden_size": 4096, "n_head": 32, "n_layer": 1}
"""A fused QKV of 50 million weights and two matrices of 67 million: 200 and 270 MB in float32."""

LARGE = {"hidden_size": 4096, "intermediate_size": 32768, "num_attention_heads": 32, "num_hidden_layers": 1}
"""Three matrices of 134 million weights: 540 MB each in float32."""


@MEASURED
def test_merging_an_adapter_holds_no_matrix(tmp_path: Path) -> None:
    family = replace(MISTRAL, config=MISTRAL.config | LARGE, shards=1)
    source = write_sparse_checkpoint(tmp_path, family)
    lora = replace(lora_of(family), ranks={"gate_proj": 4, "down_proj": 4}).write(tmp_path)
    assert peak("convert", source, "--lora", lora, "-o", tmp_path / "merged.gguf", "-j", "2") < BOUND
    header = read_gguf(tmp_path / "merged.gguf")
    merged = header.tensors["blk.0.ffn_gate.weight"]
    assert np.fromfile(merged.path, np.uint16, 4096, offset=merged.offset).any()
    assert merged.nbytes == 2 * 4096 * 32768 > BOUND


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A checkpoint with holes for weights, its GGUF, and the memory that took."""
    folder = tmp_path_factory.mktemp("bloom")
    source = write_sparse_checkpoint(folder, replace(BLOOM, config=BLOOM.config | BLOOM_7B, shards=1))
    return source, folder / "x.gguf", peak("quantize", "Q4_K_M", "-m", source, "-o", folder / "x.gguf", "-j", "2")


@MEASURED
def test_regrouping_blooms_qkv_holds_no_matrix(bloom: tuple[Path, Path, int]) -> None:
    _, path, took = bloom
    assert took < BOUND
    assert read_gguf(path).tensors["blk.0.attn_qkv.weight"].shape == (3 * 4096, 4096)


@MEASURED
def test_the_whole_check_holds_no_matrix(bloom: tuple[Path, Path, int]) -> None:
    source, path, _ = bloom
    assert peak("check", path, "--against", source, "-j", "2") < BOUND


def test_the_plan_of_a_whole_27b_shows_disk_and_memory(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SHAPES), "27b", str(tmp_path / "m"), "--sparse"], env=ENV, check=True)
    done = run("quantize", "Q4_K_M", "-m", tmp_path / "m", "--dry-run", "-j", "2")
    assert done.returncode == 0, done.stderr
    assert "Disk: 16.55 GB. Buffers: " in done.stdout
    assert done.stdout.count("Q6_K") > 60
