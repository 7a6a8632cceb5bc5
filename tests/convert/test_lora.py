"""Adapters: PEFT's merge, llama.cpp's adapter files, and refusals of what is not plain LoRA."""

import base64
import json
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.lora import read_adapter
from borealis_gguf.checkpoint.target_pattern import matches
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.convert.lora.merge import plan_merge
from borealis_gguf.convert.plain_names import plain_name
from borealis_gguf.errors import InvalidInput
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import GGUFModel, Tensor, TensorSource

from ..generate.lora_goldens import GOLDENS, OUTTYPES, sample
from ..helpers.checkpoints import MINIATURES, Miniature, config
from ..helpers.lora_adapters import ALL_LINEAR, CONV1D, EMBEDDING, FILES, IN_OUT, MERGES, PATTERNS, PLAIN, Lora, base
from ..helpers.tiny import CODEC
from .test_goldens import as_golden, digests, without_file_type

TERMS = 2
ULP = {"F32": 2.0**-23, "BF16": 2.0**-8}


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def merged(folder: Path, dtype: str, loras: tuple[tuple[Lora, float], ...], **options: Any) -> dict[str, np.ndarray]:
    """Every tensor of the converted model, by the checkpoint's name, as float32; norms without the + 1."""
    source = base(dtype).write(folder)
    plan = api.plan_convert(source, folder / "merged.gguf", loras=[(a.write(folder), s) for a, s in loras], **options)
    api.execute([plan])
    names = {slice.offset: name for name, slice in open_checkpoint(source).tensors.items()}
    for lora, _ in loras:
        names |= {s.offset: n for n, s in read_adapter(folder / lora.name).replaced.items()} if lora.saved else {}
    return {t.tensor.name: values(plan.path, t.offset, t.nbytes, t.type) for t in plan.tensors}


def values(path: Path, offset: int, nbytes: int, type: T) -> np.ndarray:
    data = np.fromfile(path, np.uint8, nbytes, offset=offset)
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if type == T.BF16 else data.view(np.float32)


NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in NAMES:
        return f"{NAMES[module]}.weight"
    _, _, bid, rest = module.split(".", 3)
    return f"blk.{bid}.{LAYER[rest]}.weight"


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("case", MERGES)
def test_merges_as_peft_does(tmp_path: Path, case: str, dtype: str) -> None:
    """F32: within the rounding of its sums, whose terms are below 1. BF16: PEFT rounds after each adapter, and an
    embedding's update before it is added; here the sum is rounded once."""
    want = golden(f"merged-{case}")[dtype]
    ours = merged(tmp_path, dtype, MERGES[case], outtype=dtype.lower())
    assert len(want) == len(ours)
    for name, packed in want.items():
        theirs = np.frombuffer(base64.b64decode(packed), "<f4")
        norm = "norm" in name
        got = sample(ours[gguf_name(name)])
        expected = theirs + np.float32(1) if norm else theirs
        assert (np.abs(got - expected) <= TERMS * ULP[dtype] * np.maximum(np.abs(expected), 1)).all(), name
        if norm:
            assert np.array_equal(got, expected), name
        if dtype == "BF16" and case not in ("two", "embedding"):
            # the very bits, but for sums on the edge between two numbers
            assert np.count_nonzero(got != expected) <= len(got) // 500, name


def test_matrices_stored_as_in_and_out_are_merged_as_peft_does(tmp_path: Path) -> None:
    """With fan_in_fan_out; no architecture of ours has them, so the merge is taken as it is before conversion."""
    checkpoint, adapter = open_checkpoint(CONV1D.write(tmp_path)), read_adapter(IN_OUT.write(tmp_path))
    tensors = [Tensor(name, TensorSource(slice), slice.shape) for name, slice in checkpoint.tensors.items()]
    merged = plan_merge(checkpoint, [(adapter, 0.5)]).apply(tensors)
    plan = lay_out(tmp_path / "x.gguf", GGUFModel((), merged), [T.F32] * len(merged))
    execute([plan], CODEC)
    want = golden("merged-in-out")
    assert sorted(want) == sorted(checkpoint.tensors)
    for t in plan.tensors:
        theirs = np.frombuffer(base64.b64decode(want[t.tensor.name]), "<f4")
        got = sample(values(plan.path, t.offset, t.nbytes, t.type))
        assert (np.abs(got - theirs) <= TERMS * ULP["F32"] * np.maximum(np.abs(theirs), 1)).all(), t.tensor.name
    assert [t.tensor.name.split(".")[-2] for t in plan.tensors if t.tensor.source.updates] == ["c_attn", "c_fc"]


def test_merging_changes_what_the_adapter_names_and_nothing_else(tmp_path: Path) -> None:
    lora = replace(PLAIN, ranks={"v_proj": 4})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain, changed = merged(tmp_path / "a", "BF16", ()), merged(tmp_path / "b", "BF16", ((lora, 0.25),))
    differ = [name for name in plain if not np.array_equal(plain[name], changed[name])]
    assert differ == ["blk.0.attn_v.weight", "blk.1.attn_v.weight"]


@pytest.mark.parametrize(
    "dialect",
    [
        "base_model.model.model.language_model.",
        "base_model.model.language_model.model.",
        "base_model.model._orig_mod.model.",  # compiled before PEFT wrapped it
    ],
)
def test_names_of_every_version_of_transformers(tmp_path: Path, dialect: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = merged(tmp_path / "a", "BF16", ((PLAIN, 1.0),))
    second = merged(tmp_path / "b", "BF16", ((replace(PLAIN, prefix=dialect), 1.0),))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert plain_name("language_model.model.layers.0.x") == plain_name("model.language_model.layers.0.x")
    assert plain_name("language_model.lm_head") == plain_name("lm_head") == "lm_head"


def test_quantizing_with_an_adapter_is_converting_and_then_quantizing(tmp_path: Path) -> None:
    source, lora = base("BF16").write(tmp_path), PLAIN.write(tmp_path)
    once = api.plan_quantize(source, ["Q8_0", "Q4_K_M"], tmp_path, loras=[(lora, 0.25)])
    master = api.plan_convert(source, tmp_path / "master.gguf", loras=[(lora, 0.25)])
    api.execute([*once, master], jobs=2)
    again = [api.plan_quantize(master.path, [p.label], tmp_path / f"again-{p.label}")[0] for p in once]
    api.execute(again, jobs=1)
    for a, b in zip(once, again, strict=True):
        assert digests(a) == digests(b)


def test_a_head_that_the_adapter_brings_unties_the_model(tmp_path: Path) -> None:
    embedding = PLAIN.tensors() | Lora("x", {}, {}, saved=("embed_tokens",)).tensors()
    data = next(v for n, v in embedding.items() if "embed_tokens" in n)
    lora = replace(PLAIN, extra={"base_model.model.lm_head.weight": data}, settings={"modules_to_save": ["lm_head"]})
    source, path = base("BF16").write(tmp_path), lora.write(tmp_path)
    plan = api.plan_convert(source, tmp_path / "x.gguf", loras=[(path, 1.0)])
    assert {t.tensor.name: t.type for t in plan.tensors}["output.weight"] == T.BF16
    api.execute([plan])
    (head,) = [t for t in plan.tensors if t.tensor.name == "output.weight"]
    ours = values(plan.path, head.offset, head.nbytes, head.type)
    assert np.abs(ours - np.frombuffer(data[2], np.float32)).max() < 2.0**-8


# ---- adapter files


@pytest.mark.parametrize("lora", FILES, ids=lambda lora: lora.name)
def test_adapter_files_are_llama_cpps(tmp_path: Path, lora: Lora) -> None:
    want = golden(f"adapter-{lora.name}")
    source, path = base("BF16").write(tmp_path), lora.write(tmp_path)
    for number, outtype in enumerate(OUTTYPES):
        plan = api.plan_convert_lora(path, source, tmp_path / f"{outtype}.gguf", outtype=outtype)
        api.execute([plan])
        file = read_gguf(plan.path)
        assert without_file_type(as_golden(file.kv)) == want["kv"]
        assert [t.type.name for t in plan.tensors] == want["types"][outtype].split()
        for t, digest, (name, shape, by_type) in zip(plan.tensors, digests(plan), want["tensors"], strict=True):
            assert (t.tensor.name, list(t.tensor.shape)) == (name, shape)
            assert digest == by_type[t.type.name], (outtype, name, number)


def test_auto_is_the_adapters_own_type_and_the_name_has_no_tag(tmp_path: Path) -> None:
    source = base("F32").write(tmp_path)
    for dtype in ("BF16", "F16", "F32"):
        lora = replace(PLAIN, name=f"{dtype}_lora", dtype=dtype).write(tmp_path)
        plan = api.plan_convert_lora(lora, source, tmp_path, outtype="auto")
        assert {t.type.name for t in plan.tensors} == {"F16" if dtype == "F32" else dtype}
        assert plan.path == tmp_path / f"{dtype}-lora.gguf"


def test_scalings_that_one_alpha_cannot_say_are_put_into_b(tmp_path: Path) -> None:
    """Purposeful difference: llama.cpp's converter drops rsLoRA and alpha_pattern."""
    lora = replace(PATTERNS, saved=(), settings=PATTERNS.settings | {"modules_to_save": None})
    source, path = base("F32").write(tmp_path), lora.write(tmp_path)
    adapter = read_adapter(path)
    plan = api.plan_convert_lora(path, source, tmp_path / "x.gguf")
    api.execute([plan])
    alpha = read_gguf(plan.path).value("adapter.lora.alpha")
    assert alpha == 7.0
    found = {t.tensor.name: values(plan.path, t.offset, t.nbytes, t.type) for t in plan.tensors}
    scalings = set()
    for module in adapter.modules:
        name = gguf_name(f"{module.module}.weight")
        b = values(module.b.path, module.b.offset, module.b.nbytes, T.BF16)
        assert np.allclose(found[f"{name}.lora_b"] * alpha / module.rank, b * module.scaling, rtol=1e-6, atol=0)
        scalings.add(round(module.scaling, 4))
    assert scalings == {round(x, 4) for x in (7 / 5**0.5, 7 / 3**0.5, 7 / 2**0.5, 5 / 3**0.5, 5 / 5**0.5,
                                              9 / 3**0.5, 32 / 5**0.5)}  # fmt: skip


def test_one_scaling_for_all_becomes_alpha(tmp_path: Path) -> None:
    lora = replace(PLAIN, settings={"use_rslora": True, "lora_alpha": 6})
    source, path = base("F32").write(tmp_path), lora.write(tmp_path)
    plan = api.plan_convert_lora(path, source, tmp_path / "x.gguf")
    assert {t.tensor.source.scale for t in plan.tensors} == {1.0}
    api.execute([plan])
    assert read_gguf(plan.path).value("adapter.lora.alpha") == 12.0


@pytest.mark.parametrize(
    ("lora", "words"), [(PATTERNS, "post_attention_layernorm"), (replace(EMBEDDING, saved=()), "changes the embedding")]
)
def test_what_llama_cpp_would_drop_or_die_of_is_not_put_into_adapter_files(
    tmp_path: Path, lora: Lora, words: str
) -> None:
    source, path = base("F32").write(tmp_path), lora.write(tmp_path)
    with pytest.raises(InvalidInput, match=rf"{words}.*merge it into the model instead"):
        api.plan_convert_lora(path, source, tmp_path / "x.gguf")


# ---- refusals


def refusal(folder: Path, lora: Lora, source: Path | None = None) -> str:
    path = lora.write(folder)
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(source or base("BF16").write(folder), folder / "x.gguf", loras=[(path, 1.0)])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


SETTINGS = [
    ({"use_dora": True}, r"DoRA (use_dora) is not supported; merge the adapter with PEFT"),
    ({"lora_bias": True}, "lora_bias is not supported"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": None}, "peft_type is 'None'"),
    ({"peft_type": ["LORA"]}, "peft_type is"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
    ({"target_parameters": ["w"]}, "target_parameters is not supported"),
    ({"layer_replication": [[0, 1]]}, "layer_replication is not supported"),
    ({"alora_invocation_tokens": [3]}, "Activated LoRA"),
    ({"a\nnew_thing": {"x": 1}}, r"a\nnew_thing is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"lora_alpha": 0}, "lora_alpha is '0'"),
    ({"lora_alpha": True}, "lora_alpha is 'True'"),
    ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    ({"lora_alpha": 1e300}, "lora_alpha is"),
    ({"r": 8}, "its rank is 8, but A has 4 rows"),
    ({"r": -4}, "r is '-4'"),
    ({"rank_pattern": {"k_proj": 2}}, "its rank is 2, but A has 4 rows"),
    ({"rank_pattern": [1]}, "rank_pattern must be an object"),
    ({"alpha_pattern": {"k_proj": "x"}}, "alpha_pattern: k_proj is 'x'"),
    ({"alpha_pattern": {"(?=k)k_proj": 2}}, "alpha_pattern: '(?=k)k_proj': a regular expression"),
    ({"use_rslora": 1}, "use_rslora is '1'"),
    ({"fan_in_fan_out": "yes"}, "fan_in_fan_out is 'yes'"),
    ({"modules_to_save": "norm"}, "modules_to_save must be a list"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=str)
def test_refused_configurations(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, replace(PLAIN, settings=settings))


def extra(name: str, *shape: int, prefix: str = "base_model.model.model.layers.0.") -> dict[str, Any]:
    return {prefix + name: ("F32", shape, np.ones(shape, np.float32).tobytes())}


TENSORS = [
    (extra("self_attn.q_proj.lora_magnitude_vector", 128), "DoRA is not supported"),
    (extra("self_attn.q_proj.lora_B.bias", 128), "lora_bias is not supported"),
    (extra("self_attn.q_proj.lora_A.default.weight", 4, 64), "named as in a raw state dict; save the adapter with"),
    (extra("input_layernorm.weight", 64), "neither a LoRA matrix nor"),
    (extra("self_attn.q_proj.bias", 64), "neither a LoRA matrix nor"),
    (extra("lora_A.weight", 4, 64, prefix="base_model.model.x."), "has A of a pair"),
    (extra("model.layers.0.mlp.up_proj.lora_A.weight", 4, 64, prefix=""), "PEFT's names begin with base_model."),
    (extra("lora_A.weight", 4, 64, prefix="base_model.model.mlp.")
     | extra("lora_B.weight", 8, 4, prefix="base_model.model.mlp."),
     "changes mlp, which the model does not have"),
    (extra("model.layers.9.mlp.x.lora_A.weight", 4, 64, prefix="base_model.model.")
     | extra("model.layers.9.mlp.x.lora_B.weight", 8, 4, prefix="base_model.model."), "changes model.layers.9.mlp.x"),
    (extra("model.embed_tokens.weight", 5000, 64, prefix="base_model.model."),
     "its shape is [5000, 64], but the checkpoint's is [4096, 64]"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "words"), TENSORS, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_tensors(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, replace(PLAIN, extra=tensors))


@pytest.mark.parametrize(
    ("a", "b"), [((4, 63), (128, 4)), ((4, 64), (127, 4)), ((64, 4), (4, 128)), ((4, 64, 1), (128, 4)),
                 ((3, 64), (128, 4)), ((0, 64), (128, 0))]
)  # fmt: skip
def test_refused_shapes(tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    pair = extra("self_attn.q_proj.lora_A.weight", *a) | extra("self_attn.q_proj.lora_B.weight", *b)
    refusal(tmp_path, replace(PLAIN, ranks={}, extra=pair))


def test_the_adapter_of_another_size_is_told(tmp_path: Path) -> None:
    other = Miniature("wide", config(hidden_size=96, num_hidden_layers=2)).write(tmp_path)
    assert "is this the model the adapter was trained on?" in refusal(tmp_path, PLAIN, other)


def test_refused_folders(tmp_path: Path) -> None:
    source = base("BF16").write(tmp_path)

    def refused(path: Path | str, words: str) -> None:
        began = time.monotonic()
        with pytest.raises(InvalidInput, match=words) as caught:
            api.plan_convert(source, loras=[(path, 1.0)])
        assert "\n" not in str(caught.value) and time.monotonic() - began < 2

    refused(tmp_path / "none", "no such folder")
    refused("a\0b", "no such folder")
    refused(source, "holds no adapter_config.json")
    path = PLAIN.write(tmp_path)
    refused(path / "adapter_model.safetensors", "give the adapter's folder")
    weights = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").unlink()
    refused(path, "holds no adapter_model.safetensors")
    (path / "adapter_model.bin").write_bytes(b"\x80\x04\x95")
    refused(path, "a pickle, which is never opened")
    for data, words in {
        weights[:-1]: "the file is damaged",
        weights + b"x": "after the last tensor",
        b"\x80\x04\x95" + bytes(80): "a Python pickle",
        struct.pack("<Q", 2) + b"{}": "holds no tensors",
        struct.pack("<Q", 1 << 62) + b"{}": "over the limit",
    }.items():
        (path / "adapter_model.safetensors").write_bytes(data)
        refused(path, words)
    for text, words in {"": "not valid JSON", "[]": "an object is needed", '{"r": 1, "r": 2}': "occurs twice"}.items():
        (path / "adapter_config.json").write_text(text, encoding="utf-8")
        refused(path, words)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    source, path = base("BF16").write(tmp_path), PLAIN.write(tmp_path)
    (tmp_path / "elsewhere").write_bytes((path / "adapter_model.safetensors").read_bytes())
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="a link out of the checkpoint"):
        api.plan_convert(source, loras=[(path, 1.0)])


def test_refused_uses(tmp_path: Path) -> None:
    source, path = base("BF16").write(tmp_path), EMBEDDING.write(tmp_path)
    with pytest.raises(InvalidInput, match="two adapters replace this tensor"):
        api.plan_convert(source, loras=[(path, 1.0), (path, 1.0)])
    with pytest.raises(InvalidInput, match="a scale of nan"):
        api.plan_convert(source, loras=[(path, float("nan"))])
    plan = api.plan_convert(source, tmp_path / "x.gguf")
    api.execute([plan])
    with pytest.raises(InvalidInput, match="into the checkpoint, not into a GGUF"):
        api.plan_quantize(plan.path, ["Q8_0"], loras=[(path, 1.0)])
    with pytest.raises(InvalidInput, match="needs the checkpoint"):
        api.plan_convert_lora(path, plan.path)


# ---- patterns


NAME = "model.layers.11.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj", "self_attn.q_proj", "attn.q_proj", "^model.layers.11.self_attn.q_proj", "^q_proj", "k_proj",
        r"layers\.(1|11)\..*", r"layers\.(1|12)\..*", "[kq]_proj", "[kv]_proj", "(q|v)_pro", "(q|v)_proj",
        r"layers\.\d+\.self_attn\.(?:q|k|v)_proj", r".*\.(q_proj|k_proj)", r".*\.(mlp\.up_proj|self_attn\.q_proj)",
        "self_attn.q_proj$", "^model.layers.11.self_attn.q_proj$", r"layers\.[0-9]+\.mlp.*", ".*proj", ".*", "model.*",
        r"^model\.layers\.\d+\..*_proj", r"^layers\.\d+\..*_proj", r"layers\.\d+\..*", "model.layers.1.*q_proj",
    ],
)  # fmt: skip
def test_patterns_match_as_in_peft(pattern: str) -> None:
    import re

    assert matches(pattern, NAME) == (re.match(rf"(.*\.)?({pattern})$", NAME) is not None)


@pytest.mark.parametrize("pattern", ["(", ")", "a)", "[", "[]", "*a", "a**", "a{2", "a{9999}", "a{3,2}", r"\b", "\\",
                                     r"\1", "(?i)a", "(?P<x>a)", "(" * 20 + ")" * 20, "a" * 600, "a++", "", "^", "$",
                                     r".*\.1{2}\..*", "[^k]_proj", "(q_proj|)", "(model.layers.1)+.*", "(.*)*q_proj",
                                     "[a-p]_proj", r"\w+_proj", "q_proj.*?", "q_proj{1,3}", ".{31}", ".+?", "x|q_proj",
                                     "[q-]_proj", "[]q]_proj", ".*a.*", r"\d+\d+\.", r"\d+.*",
                                     "(a|b)" * 7])  # fmt: skip
def test_patterns_that_are_not_understood(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"not understood here, from its character \d+ on; write the names of"):
        matches(pattern, NAME)


@pytest.mark.parametrize(
    "pattern", ["((((a*)*)*)*)*b", "(a|a)*b", "(a|aa)+$b", "(.*)(.*)(.*)(.*)(.*)x", "(a{1,64}){1,64}b"]
)
def test_spiteful_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="a regular expression that is not understood here"):
        matches(pattern, "a" * 500)


@pytest.mark.parametrize("pattern", ["(a|aa)" * 6 + "b", "a.a" * 100 + ".*b", r"\d+\." * 50 + ".*b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    began = time.monotonic()
    assert not any(matches(pattern, name) for name in ("a" * 500, "a." * 250, "1." * 250, "1" * 500))
    assert time.monotonic() - began < 2


def test_every_linear_module_is_known() -> None:
    assert len(ALL_LINEAR) == 7


def test_an_adapter_file_cannot_hold_the_vision_side(tmp_path: Path) -> None:
    source = next(m for m in MINIATURES if m.name == "borealis-4b-mini").write(tmp_path)
    shapes = {"language_model.layers.0.mlp.up_proj": (512, 256), "vision_tower.encoder.layers.3.mlp.fc1": (48, 32)}
    lora = Lora("both", {}, {"up_proj": 4, "fc1": 4}, shapes={f"{n}.weight": s for n, s in shapes.items()})
    with pytest.raises(InvalidInput, match=r"on the vision side, which as an adapter llama\.cpp cannot run; merge it"):
        api.plan_convert_lora(lora.write(tmp_path), source, tmp_path / "x.gguf")
