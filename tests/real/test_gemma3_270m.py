"""Files made from the real Gemma 3 270m: converted, described, quantized to every preset, against llama.cpp's own."""

import filecmp
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.imatrix import read_imatrix
from borealis_gguf.checkpoint.safetensors import read_header
from borealis_gguf.modelfiles.gemma import TEMPLATE
from borealis_gguf.modelfiles.read import read_modelfile
from borealis_gguf.quality.report import Report
from borealis_gguf.quantize.metadata import imatrix_kv
from borealis_gguf.quantize.presets import PRESETS, find_preset

from ..cli.test_cli import run
from ..helpers.checkpoints import pattern, write_json, write_safetensors
from ..helpers.llama_quantize import llama_quantize
from ..quantize.test_imatrix import pair, write_gguf
from ..quantize.test_parity import NEED_IMATRIX
from .material import real

NAMES = [preset.name for preset in PRESETS if preset.type is not None]
SLOW = [name for name in NAMES if name.startswith("IQ")]
"""ggml's encoders take 20 to 45 seconds for the whole model: these are compared on its first layers alone."""
QUICK = [name for name in NAMES if name not in SLOW]

LAYERS = 3
AT_ONCE = 6
"""Presets of one pass; each file is 180 to 1000 MB."""


def passes(names: list[str]) -> list[list[str]]:
    return [names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)]


def without_matrix(names: list[str]) -> list[str]:
    return [name for name in names if name not in NEED_IMATRIX]


@pytest.fixture(scope="module")
def converted(gemma_270m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Report]]]:
    """The BF16 GGUF, and what the quick check said of it."""
    reports: list[Report] = []
    plan = api.plan_convert(gemma_270m, tmp_path_factory.mktemp("bf16"))
    api.execute([plan], on_report=reports.append)
    yield plan.path, reports
    plan.path.unlink()


@pytest.fixture(scope="module")
def bf16(converted: tuple[Path, list[Report]]) -> Path:
    return converted[0]


@pytest.fixture(scope="module")
def bf16_cut(gemma_270m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The BF16 GGUF of the first layers."""
    folder = tmp_path_factory.mktemp("cut")
    plan = api.plan_convert(first_layers(gemma_270m, folder / "gemma-3-270m-it", LAYERS), folder)
    api.execute([plan])
    yield plan.path
    shutil.rmtree(folder)


def first_layers(source: Path, folder: Path, layers: int) -> Path:
    """A checkpoint like `source` in which the other layers are missing."""
    folder.mkdir()
    kept = {}
    weights = source / "model.safetensors"
    for name, slice in read_header(weights).items():
        block = re.match(r"model\.layers\.(\d+)\.", name)
        if block is None or int(block[1]) < layers:
            data = np.fromfile(weights, np.uint8, slice.nbytes, offset=slice.offset)
            kept[name] = slice.type.name, slice.shape, data.tobytes()
    write_safetensors(folder / weights.name, kept)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"num_hidden_layers": layers, "layer_types": pattern(layers)})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


def write_imatrix(path: Path, source: Path) -> Path:
    """An importance matrix of positive numbers, in llama-imatrix's format, for every matrix but the embedding."""
    random, entries = np.random.default_rng(270), {}
    for name, slice in read_gguf(source).tensors.items():
        if len(slice.shape) == 2 and name != "token_embd.weight":
            sums = random.gamma(0.5, size=(1, slice.shape[-1])) + 1e-3
            entries |= pair(sums, [[7]], name)
    return write_gguf(path, entries)


def assert_llama_cpps_files(source: Path, presets: list[str], folder: Path, imatrix: Path | None = None) -> None:
    """All presets in one pass; each file is the one that llama.cpp's quantizer makes of `source`."""
    plans = api.plan_quantize(source, presets, folder, imatrix=imatrix)
    assert [plan.label for plan in plans] == presets
    api.execute(plans, jobs=2)
    entries, overrides = {}, []
    if imatrix:
        matrix = read_imatrix(imatrix)
        entries = matrix.entries
        overrides = imatrix_kv(imatrix.name, matrix.datasets, len(entries), matrix.chunk_count)
    theirs = folder / "theirs.gguf"
    for plan in plans:
        ok, log = llama_quantize(source, theirs, find_preset(plan.label), None, entries, overrides, threads=2)
        assert ok, f"{plan.label}: {log[-500:]}"
        assert filecmp.cmp(plan.path, theirs, shallow=False), plan.label
        plan.path.unlink()
        theirs.unlink()


def test_convert(gemma_270m: Path, converted: tuple[Path, list[Report]]) -> None:
    path, (quick,) = converted
    assert path.name == "gemma-3-270m-it-BF16.gguf"
    assert quick.ok and quick.quick
    report = api.check(path, gemma_270m)
    assert report.ok and not report.quick, report.failures
    assert all(section.checked for section in report.sections)
    titles = [section.title for section in report.sections]
    assert [section.title for section in quick.sections] == [title for title in titles if title != "cross check"]
    assert "cross check" in titles


DIFFERENT = {
    "general.name": "the folder is called -it",
    "general.finetune": "the folder is called -it",
    "general.license": "told by the model card, which this checkpoint does not have",
    "general.tags": "told by the model card, which this checkpoint does not have",
    "general.file_type": "BF16, and Q4_K_M",
    "gemma3.rope.freq_base_swa": "written by llama.cpp's converter since the published file was made",
    "tokenizer.ggml.scores": "tokenizer.json has no scores, but the merges in their order",
    "tokenizer.ggml.token_type": "the tokenizer is that of the instruct model",
    "tokenizer.ggml.eos_token_id": "the tokenizer is that of the instruct model",
    "tokenizer.chat_template": "the tokenizer is that of the instruct model",
}
"""Keys in which our file is not the published one, and why."""


def test_metadata_is_that_of_the_published_file(bf16: Path) -> None:
    ours, theirs = read_gguf(bf16), read_gguf(real("gemma3-270m") / "gemma-3-270m-Q4_K_M.gguf")
    keys = {entry.key for entry in (*ours.kv, *theirs.kv)}
    assert {key for key in keys if ours.find(key) != theirs.find(key)} == DIFFERENT.keys()
    assert [file.value("general.file_type") for file in (ours, theirs)] == [32, 15]
    assert [file.value("tokenizer.ggml.eos_token_id") for file in (ours, theirs)] == [106, 1]
    assert {name: slice.shape for name, slice in ours.tensors.items()} == {
        name: slice.shape for name, slice in theirs.tensors.items()
    }


def test_vocabulary_is_that_of_the_published_file(bf16: Path) -> None:
    """The same texts; types but for two; and scores that join the same tokens first."""
    files = read_gguf(bf16), read_gguf(real("gemma3-270m") / "gemma-3-270m-Q4_K_M.gguf")
    tokens, theirs = (file.value("tokenizer.ggml.tokens") for file in files)
    assert tokens == theirs and len(tokens) == 262144
    types, their_types = (np.array(file.value("tokenizer.ggml.token_type")) for file in files)
    assert {tokens[id] for id in np.flatnonzero(types != their_types)} == {"<start_of_image>", "<end_of_image>"}
    scores, their_scores = (np.array(file.value("tokenizer.ggml.scores")) for file in files)
    added = types != 1
    assert np.array_equal(scores[added], their_scores[added])
    joined = ~added & (scores < 0)
    assert joined.sum() == 236249
    assert np.all(np.diff(scores[joined][np.argsort(-their_scores[joined])]) < 0)
    assert all(len(tokens[id]) == 1 for id in np.flatnonzero(~added & (scores == 0)))


@pytest.mark.parametrize("presets", passes(without_matrix(QUICK)), ids="-".join)
def test_presets_are_llama_cpps_files(bf16: Path, tmp_path: Path, presets: list[str]) -> None:
    assert_llama_cpps_files(bf16, presets, tmp_path)


def test_presets_with_an_importance_matrix_are_llama_cpps_files(bf16: Path, tmp_path: Path) -> None:
    """Every type that these weights may get and that a matrix has an influence on."""
    presets = ["Q2_K_S", "Q3_K_S", "Q4_1", "Q4_K_M", "Q5_K_M"]
    assert_llama_cpps_files(bf16, presets, tmp_path, write_imatrix(tmp_path / "imatrix.gguf", bf16))


@pytest.mark.parametrize("presets", passes(without_matrix(SLOW)), ids="-".join)
def test_slow_presets_of_the_first_layers_are_llama_cpps_files(
    bf16_cut: Path, tmp_path: Path, presets: list[str]
) -> None:
    assert_llama_cpps_files(bf16_cut, presets, tmp_path)


@pytest.mark.parametrize("presets", passes(SLOW), ids="-".join)
def test_slow_presets_with_an_importance_matrix_are_llama_cpps_files(
    bf16_cut: Path, tmp_path: Path, presets: list[str]
) -> None:
    assert_llama_cpps_files(bf16_cut, presets, tmp_path, write_imatrix(tmp_path / "imatrix.gguf", bf16_cut))


def test_three_presets_in_one_command(gemma_270m: Path, bf16: Path, tmp_path: Path) -> None:
    """From the checkpoint: each passes the full check, and is what llama.cpp's quantizer makes of the BF16 GGUF."""
    presets = ["Q8_0", "Q5_K_M", "Q4_K_M"]
    done = run("quantize", *presets, "-m", gemma_270m, "-o", tmp_path, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / f"gemma-3-270m-it-{preset}.gguf" for preset in presets]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for preset, path in zip(presets, paths, strict=True):
        report = api.check(path, gemma_270m)
        assert report.ok, report.failures
        assert llama_quantize(bf16, tmp_path / "theirs", find_preset(preset), threads=2)[0]
        assert filecmp.cmp(path, tmp_path / "theirs", shallow=False), preset
        path.unlink()


def test_modelfile(gemma_270m_q8: Path, tmp_path: Path) -> None:
    gguf = tmp_path / gemma_270m_q8.name
    gguf.symlink_to(gemma_270m_q8)
    done = run("modelfile", gguf, "-o", tmp_path / "Modelfile", "--system", "Svar på nynorsk.")
    assert done.returncode == 0, done.stderr
    found = read_modelfile((tmp_path / "Modelfile").read_text(encoding="utf-8"), tmp_path)
    values = {instruction.key or instruction.name: instruction.value for instruction in found}
    assert values == {
        "FROM": f"./{gguf.name}",
        "TEMPLATE": TEMPLATE,
        "SYSTEM": "Svar på nynorsk.",
        "num_ctx": "8192",
        "temperature": "1",
        "top_k": "64",
        "top_p": "0.95",
        "min_p": "0",
        "repeat_penalty": "1",
        "repeat_last_n": "64",
        "stop": "<end_of_turn>",
    }
    assert "<start_of_turn>model\n" in values["TEMPLATE"] and "<end_of_turn>\n" in values["TEMPLATE"]
