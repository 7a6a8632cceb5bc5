"""What we make of every miniature is what llama.cpp's converter made of it: metadata, names, types and bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert import describe, file_type, outtypes
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import FilePlan, GGUFModel

from ..generate.goldens import GOLDENS, OUTTYPES, golden_kv, without_file_type
from ..helpers.checkpoints import JSON_ONLY, MINIATURES, NANO, TIED_HEAD, Miniature, config
from ..helpers.tiny import CODEC

EXTRA = {"tokenizer.ggml.unknown_token_id"}
"""Purposeful difference: llama.cpp writes this id only when there is a tokenizer.json to look it up in, and its runtime
then takes 0, Gemma's <pad>, for unknown."""

PASS = ("f32", "f16", "bf16", "q8_0")


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def as_golden(kv: tuple[KV, ...]) -> list[list[Any]]:
    return json.loads(json.dumps([golden_kv(e.key, e.type, e.item_type, e.value) for e in kv]))


def differences(ours: list[list[Any]], theirs: list[list[Any]]) -> list[list[Any]]:
    """Entries that only one side has, or that differ; empty also proves the order."""
    return [] if ours == theirs else [e for e in ours if e not in theirs] + [e for e in theirs if e not in ours]


def digests(plan: FilePlan) -> list[str]:
    """SHA-256 of each tensor as it stands in the finished file."""
    with plan.path.open("rb") as file:
        return [hashlib.sha256(_slice(file, t.offset, t.nbytes)).hexdigest() for t in plan.tensors]


def _slice(file: Any, offset: int, nbytes: int) -> bytes:
    file.seek(offset)
    return file.read(nbytes)


@pytest.mark.parametrize("miniature", [None, *MINIATURES], ids=lambda m: m.name if m else "nano-nb-7m")
def test_equals_llama_cpp(miniature: Miniature | None, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(miniature.write(tmp_path) if miniature else NANO)
    want = golden(checkpoint.path.name)
    model, _ = describe(checkpoint, "bf16")
    known = {entry[0] for entry in want["kv"]}
    kv = [entry for entry in as_golden(model.kv) if entry[0] in known or entry[0] not in EXTRA]
    theirs = [[*e, want["file_type"]["bf16"]] if e[0] == "general.file_type" else e for e in want["kv"]]
    assert differences(kv, theirs) == []
    assert kv == theirs
    for outtype in OUTTYPES:
        assert file_type(model.tensors, outtype) == want["file_type"][outtype]
        assert " ".join(t.name for t in outtypes(model.tensors, outtype)) == want["types"][outtype]
    check_bytes(tmp_path, model, want["tensors"])


def check_bytes(folder: Path, model: GGUFModel, want: list[Any]) -> None:
    """Every tensor of every outtype, as the executor writes them in one pass."""
    plans = [lay_out(folder / f"{o}.gguf", model, outtypes(model.tensors, o), label=o) for o in PASS]
    execute(plans, CODEC)
    for plan in plans:
        for ours, theirs, digest in zip(plan.tensors, want, digests(plan), strict=True):
            name, shape, by_type = theirs
            assert (ours.tensor.name, list(ours.tensor.shape)) == (name, shape)
            assert digest == by_type[ours.type.name], (plan.label, name)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_the_outtype_changes_the_file_type_and_nothing_else(outtype: str) -> None:
    want = golden(NANO.name)
    model, types = describe(open_checkpoint(NANO), outtype)
    kv = as_golden(model.kv)
    assert ["general.file_type", "UINT32", want["file_type"][outtype]] in kv
    assert without_file_type(kv) == want["kv"]
    assert " ".join(t.name for t in types) == want["types"][outtype]


def test_a_stored_head_that_repeats_the_embedding_is_dropped(tmp_path: Path) -> None:
    """Purposeful difference: llama.cpp keeps it, and counts it in the size label."""
    want = golden(TIED_HEAD.name)
    model, _ = describe(open_checkpoint(TIED_HEAD.write(tmp_path)), "bf16")
    assert [t.name for t in model.tensors] == [n for n, *_ in want["tensors"] if n != "output.weight"]
    assert "output.weight" in [n for n, *_ in want["tensors"]]
    kv = without_file_type(as_golden(model.kv))
    assert [e[:2] for e in differences(kv, want["kv"])] == [["general.size_label", "STRING"]] * 2


def test_only_tokenizer_json(tmp_path: Path) -> None:
    """Where llama.cpp's converter dies: the same vocabulary as with tokenizer.model; only the scores' scale differs."""
    path = Miniature(NANO.name, config(), tokenizer=JSON_ONLY).write(tmp_path)
    model, _ = describe(open_checkpoint(path), "bf16")
    want = [e for e in golden(NANO.name)["kv"] if e[0].startswith("tokenizer.")]
    ours = [e for e in as_golden(model.kv) if e[0].startswith("tokenizer.")]
    assert [e[0] for e in ours] == [e[0] for e in want]
    assert {e[0] for e in differences(ours, want)} == {"tokenizer.ggml.scores"}
