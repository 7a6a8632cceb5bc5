"""Adapters on Mistral, Llama, BLOOM and Qwen 2, whose rows GGUF has in another order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf

from ..helpers.checkpoints import write_safetensors
from ..helpers.families import FAMILIES, Family, bloom_shapes
from ..helpers.llama_logits import llama_logits
from ..helpers.lora_adapters import FAMILY_FILES, Lora, lora_of
from .test_goldens import as_golden, digests, without_file_type
from .test_lora import golden

SCALE = 0.25
IDS = [1, *range(280, 1400, 30)]
F32 = [replace(family, dtype="F32", shards=1) for family in FAMILIES]


def write_merged(family: Family, lora: Lora, folder: Path) -> Path:
    """The checkpoint with the adapter in its weights, by numpy's own matrix product."""
    path, pairs = family.write(folder), lora.tensors()
    arrays = {name: np.frombuffer(data, np.float32).reshape(shape) for name, (_, shape, data) in pairs.items()}
    tensors = family.tensors()
    for name, (dtype, shape, data) in tensors.items():
        module = lora.prefix + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in arrays:
            a, b = arrays[f"{module}.lora_A.weight"], arrays[f"{module}.lora_B.weight"]
            delta = (SCALE * 8 / 4 * b.astype(np.float64) @ a).astype(np.float32)
            tensors[name] = dtype, shape, (np.frombuffer(data, np.float32).reshape(shape) + delta).tobytes()
    write_safetensors(path / "model.safetensors", tensors)
    return path


@pytest.mark.parametrize("family", F32, ids=lambda f: f.name)
def test_merged_and_beside_the_model(family: Family, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    lora = lora_of(family)
    source, adapter = family.write(tmp_path), lora.write(tmp_path)
    reference = write_merged(family, lora, tmp_path / "merged")
    ours = api.plan_convert(source, tmp_path / "ours.gguf", outtype="f32", loras=[(adapter, SCALE)])
    theirs = api.plan_convert(reference, tmp_path / "theirs.gguf", outtype="f32")
    base = api.plan_convert(source, tmp_path / "base.gguf", outtype="f32")
    pairs = api.plan_convert_lora(adapter, source, tmp_path / "adapter.gguf")
    api.execute([ours, theirs, base, pairs])
    updated = sum(t.tensor.source.updates != () for t in ours.tensors)
    assert updated == sum(name.endswith("A.weight") for name in lora.tensors())
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        got, want = (
            np.fromfile(p.path, np.float32, t.nbytes // 4, offset=t.offset) for p, t in ((ours, a), (theirs, b))
        )
        assert np.abs(got - want).max() <= 2.0**-22, a.tensor.name
    runs = ((ours.path, ()), (base.path, [(pairs.path, SCALE)]), (base.path, ()))
    merged, beside, plain = (llama_logits(path, [IDS], loras) for path, loras in runs)
    assert np.abs(merged - beside).max() < family.tolerance * np.abs(merged).max()
    assert np.abs(merged - plain).max() > 0.02 * np.abs(merged).max()


@pytest.mark.parametrize("name", FAMILY_FILES)
def test_adapter_files_are_llama_cpps(name: str, tmp_path: Path) -> None:
    """The rows of B are permuted as the rows of the matrix are."""
    family = next(f for f in FAMILIES if f.name == name)
    want = golden(f"adapter-{name}")
    source, adapter = family.write(tmp_path), lora_of(family).write(tmp_path)
    plan = api.plan_convert_lora(adapter, source, tmp_path / "x.gguf")
    api.execute([plan])
    assert without_file_type(as_golden(read_gguf(plan.path).kv)) == want["kv"]
    assert [t.tensor.name for t in plan.tensors] == [row[0] for row in want["tensors"]]
    assert digests(plan) == [row[2]["F32"] for row in want["tensors"]]


def test_wrappers_in_front_of_names_do_not_count(tmp_path: Path) -> None:
    """BLOOM's own checkpoints have `h.0…`, its adapters `transformer.h.0…`."""
    bloom = next(family for family in F32 if "bloom" in family.name)
    bare = replace(bloom, name="bare", shapes=lambda config: bloom_shapes(config, prefix=""))
    lora = lora_of(bloom)
    plan = api.plan_convert(bare.write(tmp_path), tmp_path / "x.gguf", loras=[(lora.write(tmp_path), 1.0)])
    assert sum(t.tensor.source.updates != () for t in plan.tensors) == len(lora.tensors()) // 2
