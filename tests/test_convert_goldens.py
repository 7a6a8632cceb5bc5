"""What we make of every miniature is what llama.cpp's converter made of it: metadata, names, types and bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert import describe
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import FilePlan, Model

from .checkpoints import JSON_ONLY, MINIATURES, NANO, TIED_HEAD, Miniature, config
from .make_goldens import GOLDENS, OUTTYPES, golden_kv, without_file_type
from .tiny import CODEC

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


def check_tensors(folder: Path, described: dict[str, tuple[Model, list[Any]]], want: dict[str, Any]) -> None:
    plans = [lay_out(folder / f"{t}.gguf", *described[t], label=t) for t in PASS]
    execute(plans, CODEC)
    for plan in plans:
        for ours, theirs, digest in zip(plan.tensors, want["tensors"], digests(plan), strict=True):
            name, shape, by_type = theirs
            assert (ours.tensor.name, list(ours.tensor.shape)) == (name, shape)
            assert digest == by_type[ours.type.name], (plan.label, name)


@pytest.mark.parametrize("miniature", [None, *MINIATURES], ids=lambda m: m.name if m else "nano-nb-7m")
def test_equals_llama_cpp(miniature: Miniature | None, tmp_path: Path) -> None:
    path = miniature.write(tmp_path) if miniature else NANO
    want = golden(path.name)
    described = {outtype: describe(open_checkpoint(path), outtype) for outtype in OUTTYPES}
    for outtype, (model, types) in described.items():
        kv = as_golden(model.kv)
        theirs = [[*e, want["file_type"][outtype]] if e[0] == "general.file_type" else e for e in want["kv"]]
        assert differences(kv, theirs) == []
        assert kv == theirs
        assert " ".join(t.name for t in types) == want["types"][outtype]
    check_tensors(tmp_path, described, want)


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
