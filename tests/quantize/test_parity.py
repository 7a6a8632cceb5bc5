"""`quantize` against llama.cpp's quantizer: the same file, byte for byte, for every preset and shape."""

import hashlib
import itertools
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.imatrix import read_imatrix
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.choose import TypeOptions
from borealis_gguf.quantize.metadata import imatrix_kv
from borealis_gguf.quantize.presets import PRESETS, find_preset

from ..helpers.llama_quantize import llama_quantize
from ..helpers.tiny import bf16, weights
from .test_presets import Shape

NAMES = [preset.name for preset in PRESETS if preset.type is not None]
NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
WITHOUT_IMATRIX = [name for name in NAMES if name not in NEED_IMATRIX]
MODELS = {
    "270m": (Shape("gemma3", 6, 640, 2048, 4, 1), "BF16"),
    "1b": (Shape("gemma3", 4, 1152, 6912, 4, 1), "BF16"),
    "gqa2": (Shape("gemma3", 9, 512, 768, 8, 4), "BF16"),
    "untied": (Shape("gemma3", 8, 256, 512, 4, 1, tied=False), "F16"),
    "odd": (Shape("gemma3", 6, 80, 176, 4, 4), "F32"),
    "llama": (Shape("llama", 5, 256, 512, 8, 8, tied=False), "F32"),
    "bloom": (Shape("bloom", 5, 256, 512, 16, 16), "F16"),
}


def write_model(path: Path, shape: Shape, type: str) -> Path:
    """A GGUF of `shape` with plausible weights in `type`; tensors in the order a converter writes them."""
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_uint32("general.file_type", 1)
    for entry in shape.kv()[1:]:
        writer.add_key_value(entry.key, entry.value, entry.type)
    writer.add_uint32("general.quantization_version", 2)
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "▁på", "æ", "🫐"])
    for seed, (name, extents) in enumerate(shape.tensors()):
        values = weights(seed, *extents)
        raw = None
        if len(extents) > 1 and type == "F16":
            values = values.astype(np.float16)
        elif len(extents) > 1 and type == "BF16":
            values, raw = bf16(values).view(np.uint8), gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(path: Path, shape: Shape) -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["nob.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for seed, (name, extents) in enumerate(shape.tensors()):
        if len(extents) == 2 and "token_embd" not in name:
            writer.add_tensor(f"{name}.in_sum2", np.square(weights(1000 + seed, 1, extents[-1])) * 50)
            writer.add_tensor(f"{name}.counts", np.full((1, 1), 3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_imatrix", [False, True])
def test_every_preset_is_llama_cpps_file(tmp_path: Path, name: str, with_imatrix: bool) -> None:
    shape, type = MODELS[name]
    source = write_model(tmp_path / "source.gguf", shape, type)
    presets = NAMES if with_imatrix else WITHOUT_IMATRIX
    if name == "odd":  # neither knows a fallback for Q1_0's blocks of 128
        presets = [preset for preset in presets if preset != "Q1_0"]
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", shape) if with_imatrix else None
    plans = api.plan_quantize(source, presets, tmp_path, imatrix=imatrix)
    api.execute(plans, jobs=2)
    matrix = read_imatrix(imatrix) if imatrix else None
    entries = matrix.entries if matrix else {}
    overrides = imatrix_kv("imatrix.gguf", ["nob.txt"], len(entries), 7) if matrix else ()
    for plan in plans:
        ok, log = llama_quantize(source, tmp_path / "theirs", find_preset(plan.label), None, entries, overrides)
        assert ok, f"{plan.label}: {log[-500:]}"
        assert sha(plan.path) == sha(tmp_path / "theirs"), plan.label


OPTIONS = {
    "pure": ({"pure": True}, TypeOptions(pure=True)),
    "overrides": (
        {"tensor_types": ["attn_v=q8_0", r"blk\.[01]\.ffn=q6_K"]},
        TypeOptions(tensor_types=(("attn_v", T.Q8_0), (r"blk\.[01]\.ffn", T.Q6_K))),
    ),
    "output": (
        {"output_tensor_type": "q8_0", "token_embedding_type": "bf16"},
        TypeOptions(output_tensor_type=T.Q8_0, token_embedding_type=T.BF16),
    ),
    "leave": ({"leave_output_tensor": True}, TypeOptions(leave_output_tensor=True)),
}


@pytest.mark.parametrize("label", OPTIONS)
def test_every_option_is_llama_cpps_file(tmp_path: Path, label: str) -> None:
    ours, theirs = OPTIONS[label]
    for name in ("untied", "gqa2"):
        source = write_model(tmp_path / f"{name}.gguf", *MODELS[name])
        plans = api.plan_quantize(source, ["Q4_K_M", "Q3_K_L", "IQ4_XS", "F16"], tmp_path, **ours)
        api.execute(plans)
        for plan in plans:
            ok, log = llama_quantize(source, tmp_path / "theirs", find_preset(plan.label), theirs)
            assert ok, log
            assert sha(plan.path) == sha(tmp_path / "theirs"), f"{name} {plan.label}"


OVERRIDES = {
    "gemma3.context_length": ("int:4096", GGUFValueType.UINT32, 4096),
    "gemma3.rope.freq_base": ("float:0.1", GGUFValueType.FLOAT32, float(np.float32(0.1))),
    "tokenizer.ggml.add_bos_token": ("bool:false", GGUFValueType.BOOL, False),
    "tokenizer.ggml.add_eos_token": ("bool:true", GGUFValueType.BOOL, True),
    "general.name": ("str:Æ = 1:2", GGUFValueType.STRING, "Æ = 1:2"),
    "general.file_type": ("int:7", GGUFValueType.UINT32, 7),
    "my.own": ("str:", GGUFValueType.STRING, ""),
}


@pytest.mark.parametrize("with_imatrix", [False, True])
def test_overridden_metadata_is_llama_cpps_file(tmp_path: Path, with_imatrix: bool) -> None:
    source = write_model(tmp_path / "source.gguf", *MODELS["gqa2"])
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", MODELS["gqa2"][0]) if with_imatrix else None
    texts = [f"{key}={text}" for key, (text, _, _) in OVERRIDES.items()]
    plans = api.plan_quantize(source, ["Q4_K_M", "F16", "COPY"], tmp_path, imatrix=imatrix, override_kv=texts)
    api.execute(plans)
    entries = read_imatrix(imatrix).entries if imatrix else {}
    overrides = [KV(key, type, value) for key, (_, type, value) in OVERRIDES.items()]
    overrides += imatrix_kv("imatrix.gguf", ["nob.txt"], len(entries), 7) if imatrix else ()
    for plan in plans:
        ok, log = llama_quantize(source, tmp_path / "theirs", find_preset(plan.label), None, entries, overrides)
        assert ok, log
        assert sha(plan.path) == sha(tmp_path / "theirs"), plan.label
        header = read_gguf(plan.path)
        assert {key: header.value(key, None) for key in OVERRIDES} == {key: row[2] for key, row in OVERRIDES.items()}


def test_an_overridden_shape_chooses_the_mixture(tmp_path: Path) -> None:
    """With 8 experts every V tensor is Q8_0, whatever the preset."""
    source = write_model(tmp_path / "m.gguf", *MODELS["gqa2"])
    (plan,) = api.plan_quantize(source, ["Q4_K_M"], tmp_path, override_kv=["gemma3.expert_count=int:8"])
    assert {t.type for t in plan.tensors if "attn_v" in t.tensor.name} == {T.Q8_0}
    for text in ("general.alignment=int:64", "split.count=int:2"):
        with pytest.raises(InvalidInput, match=rf"^--override-kv '{re.escape(text)}': .* cannot be set$"):
            api.plan_quantize(source, ["Q4_K_M"], tmp_path, override_kv=[text])


def test_requantizing_is_llama_cpps_file_and_must_be_asked_for(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m-BF16.gguf", *MODELS["gqa2"])
    (q8,) = api.plan_quantize(source, ["Q8_0"], tmp_path)
    api.execute([q8])
    with pytest.raises(InvalidInput, match=r"is quantized already \(Q8_0\).*--allow-requantize"):
        api.plan_quantize(q8.path, ["Q4_K_M"], tmp_path)
    (plan,) = api.plan_quantize(q8.path, ["Q4_K_M"], tmp_path, allow_requantize=True)
    api.execute([plan])
    ok, _ = llama_quantize(q8.path, tmp_path / "theirs", find_preset("Q4_K_M"), allow_requantize=True)
    assert ok
    assert sha(plan.path) == sha(tmp_path / "theirs")


def test_copy_is_llama_cpps_file(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", *MODELS["untied"])
    (plan,) = api.plan_quantize(source, ["COPY"], tmp_path)
    api.execute([plan])
    ok, _ = llama_quantize(source, tmp_path / "theirs", find_preset("COPY"))
    assert ok
    assert sha(plan.path) == sha(tmp_path / "theirs")


def test_a_split_source_gives_the_file_of_the_whole_one(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf", *MODELS["gqa2"])
    writer = gguf.GGUFWriter(tmp_path / "split.gguf", "gemma3", split_max_tensors=20)
    file = read_gguf(whole)
    for entry in file.kv[1:]:
        writer.add_key_value(entry.key, entry.value, entry.type, entry.item_type)
    for name, slice in file.tensors.items():
        data = np.fromfile(whole, np.uint8, slice.nbytes, offset=slice.offset)
        data = data.reshape(*slice.shape[:-1], -1) if slice.type == T.BF16 else data.view(np.float32)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16 if slice.type == T.BF16 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shards = sorted(tmp_path.glob("split-*.gguf"))
    assert len(shards) > 1
    plans = [*api.plan_quantize(whole, ["Q4_K_M"], tmp_path / "a.gguf"),
             *api.plan_quantize(shards[0], ["Q4_K_M"], tmp_path / "b.gguf")]  # fmt: skip
    api.execute(plans)
    assert sha(tmp_path / "a.gguf") == sha(tmp_path / "b.gguf")


def test_the_real_checkpoint_in_one_pass_is_convert_then_llama_quantize(
    tmp_path: Path, nano: Path, nano_bf16: Path
) -> None:
    presets = ["Q4_K_M", "Q8_0", "IQ4_XS", "Q3_K_M", "F16"]
    plans = api.plan_quantize(nano, presets, tmp_path)
    api.execute(plans)
    for plan in plans:
        ok, log = llama_quantize(nano_bf16, tmp_path / "theirs", find_preset(plan.label))
        assert ok, log
        assert sha(plan.path) == sha(tmp_path / "theirs"), plan.label


def test_several_presets_in_one_pass_are_those_of_several_passes(tmp_path: Path, nano: Path) -> None:
    presets = ["Q4_K_M", "Q5_K_M", "Q6_K"]
    plans = api.plan_quantize(nano, presets, tmp_path)
    api.execute(plans, jobs=3)
    for preset, plan in zip(presets, plans, strict=True):
        (alone,) = api.plan_quantize(nano, [preset], tmp_path / "alone.gguf")
        api.execute([alone], jobs=1)
        assert sha(alone.path) == sha(plan.path)


def test_a_low_bit_preset_without_imatrix_names_the_tensor(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", *MODELS["gqa2"])
    for preset in sorted(NEED_IMATRIX):
        with pytest.raises(InvalidInput, match=rf"{preset}: blk\.\d\.\w+\.weight as \w+ needs an importance matrix"):
            api.plan_quantize(source, [preset], tmp_path)


def test_an_imatrix_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", *MODELS["gqa2"])
    wider = write_imatrix(tmp_path / "wide.gguf", MODELS["270m"][0])
    with pytest.raises(InvalidInput, match=r"has 512 columns, the importance matrix 640"):
        api.plan_quantize(source, ["Q4_K_M"], tmp_path, imatrix=wider)


def test_names_of_outputs(tmp_path: Path, nano: Path) -> None:
    source = write_model(tmp_path / "borealis-4b-BF16.gguf", *MODELS["gqa2"])
    assert api.plan_quantize(source, ["q4_k_m"])[0].path == Path("borealis-4b-Q4_K_M.gguf")
    assert api.plan_convert(nano).path == Path("nano-nb-7m-BF16.gguf")
    assert api.plan_convert(nano, tmp_path, outtype="f16").path == tmp_path / "nano-nb-7m-F16.gguf"
    assert api.plan_quantize(source, ["Q8_0"], tmp_path / "x.gguf")[0].path == tmp_path / "x.gguf"
    for first, second in itertools.pairwise(["Q8_0", "Q4_K_M", "q8_0"]):
        with pytest.raises(InvalidInput, match="2 presets need a folder"):
            api.plan_quantize(source, [first, second], tmp_path / "x.gguf")
