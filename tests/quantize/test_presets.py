"""Every tensor's type, against llama.cpp's own llama_model_quantize on tiny models of every shape that matters."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from borealis_gguf.checkpoint.types import KV
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.choose import (
    Choice,
    TensorInfo,
    TypeOptions,
    choose_types,
    fallback,
    file_order,
    is_quantized_by_presets,
    model_shape,
)
from borealis_gguf.quantize.mixture import ModelShape
from borealis_gguf.quantize.presets import (
    ALIASES,
    PRESETS,
    Preset,
    bits_per_weight,
    find_preset,
    parse_tensor_type,
    parse_type,
)

from ..helpers.llama_quantize import llama_quantize


@dataclass(frozen=True)
class Shape:
    """A tiny model: real block counts and row widths, two rows a tensor."""

    arch: str
    layers: int
    embd: int
    ff: int
    heads: int
    heads_kv: int
    tied: bool = True
    experts: int = 0
    extra: tuple[tuple[str, tuple[int, ...]], ...] = field(default=())

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        e, rows = self.embd, [("token_embd.weight", (4, self.embd)), ("output_norm.weight", (self.embd,))]
        if not self.tied:
            rows.append(("output.weight", (4, e)))
        for i in range(self.layers):
            rows += [(f"blk.{i}.{name}", shape) for name, shape in self.block()]
        return [*rows, *self.extra]

    def block(self) -> list[tuple[str, tuple[int, ...]]]:
        e, stack = self.embd, (self.experts,) if self.experts else ()
        exps = "_exps" if self.experts else ""
        fused = self.arch in ("bloom", "falcon")
        attention = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
        rows: list[tuple[str, tuple[int, ...]]] = [("attn_norm.weight", (e,)), ("attn_output.weight", (2, e))]
        rows += [(f"{name}.weight", (2, e)) for name in attention]
        rows += [(f"ffn_up{exps}.weight", (*stack, 2, e)), (f"ffn_down{exps}.weight", (*stack, 2, self.ff))]
        if not fused:
            rows.append((f"ffn_gate{exps}.weight", (*stack, 2, e)))
        if self.experts:
            rows.append(("ffn_gate_inp.weight", (self.experts, e)))
        return [*rows, ("ffn_up.bias", (2,))]

    def kv(self) -> list[KV]:
        u32 = gguf.GGUFValueType.UINT32
        counts = {
            "context_length": 64,
            "embedding_length": self.embd,
            "block_count": self.layers,
            "feed_forward_length": self.ff,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.heads_kv,
        }
        if self.experts:
            counts |= {"expert_count": self.experts, "expert_used_count": 2}
        return [
            KV("general.architecture", gguf.GGUFValueType.STRING, self.arch),
            *(KV(f"{self.arch}.{key}", u32, value) for key, value in counts.items()),
            KV(f"{self.arch}.attention.layer_norm_rms_epsilon", gguf.GGUFValueType.FLOAT32, 1e-6),
            KV(f"{self.arch}.attention.layer_norm_epsilon", gguf.GGUFValueType.FLOAT32, 1e-6),
        ]


ODD_NAMES = (
    ("abcde", (2, 256)),
    ("position_embd.weight", (2, 256)),
    ("per_layer_token_embd.weight", (2, 256)),
    ("per_layer_model_proj.weight", (2, 256)),
    ("blk.1.ssm_conv1d.weight", (2, 256)),
    ("blk.1.attn_kv_b.weight", (2, 256)),
    ("blk.1.one_row.weight", (1, 256)),
    ("blk.1.narrow.weight", (2, 96)),
    ("blk.1.inp_gate.weight", (2, 512)),
)

SHAPES = {
    "270m": Shape("gemma3", 18, 640, 2048, 4, 1),
    "1b": Shape("gemma3", 26, 1152, 6912, 4, 1),
    "4b": Shape("gemma3", 34, 2560, 10240, 8, 4),
    "12b": Shape("gemma3", 48, 256, 512, 16, 8),
    "untied": Shape("gemma3", 6, 512, 768, 4, 1, tied=False),
    "not-32": Shape("gemma3", 6, 80, 176, 4, 4),
    "odd-names": Shape("gemma3", 6, 256, 512, 8, 1, tied=False, extra=ODD_NAMES),
    "llama": Shape("llama", 32, 512, 768, 8, 8, tied=False),
    "llama-gqa": Shape("llama", 22, 512, 768, 8, 2, tied=False),
    "llama-70b": Shape("llama", 80, 256, 256, 8, 4, tied=False),
    "llama-65b": Shape("llama", 80, 256, 256, 8, 8, tied=False),
    "moe-8": Shape("llama", 16, 256, 512, 8, 2, tied=False, experts=8),
    "moe-4": Shape("llama", 8, 256, 320, 8, 8, tied=False, experts=4),
    "bloom": Shape("bloom", 24, 512, 2048, 16, 16),
    "falcon": Shape("falcon", 32, 512, 768, 8, 1, tied=False),
    "qwen2-80": Shape("qwen2", 80, 256, 256, 8, 8),
}


def write(shape: Shape, path: Path, rng: np.random.Generator | None = None) -> Path:
    writer = gguf.GGUFWriter(path, shape.arch)
    for entry in shape.kv()[1:]:
        writer.add_key_value(entry.key, entry.value, entry.type)
    for name, extents in shape.tensors():
        data = np.zeros(extents, np.float32) if rng is None else rng.standard_normal(extents).astype(np.float32)
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write(shape, folder / f"{name}.gguf") for name, shape in SHAPES.items()}


_TENSOR = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = [^(\n]*(?:\((\S+)\))?$", re.MULTILINE)
_FELL = re.compile(r"^warning: (\S+) .*\(required for type +(\S+)\) ", re.MULTILINE)
_NEEDS = "actually completing this quantization will require an imatrix"


def logged_types(log: str) -> dict[str, tuple[str, str]]:
    """name → (type, type that did not fit or ""), from the log of a dry run."""
    fell = dict(_FELL.findall(log))
    return {name: ((new or old).upper(), fell.get(name, "").upper()) for name, old, new in _TENSOR.findall(log)}


def ours(shape: Shape, preset: Preset, options: TypeOptions) -> list[tuple[str, Choice]]:
    extents = dict(shape.tensors())
    tensors: list[TensorInfo] = [(name, extents[name], T.F32) for name in file_order(extents)]
    choices = choose_types(tensors, model_shape(shape.kv()), preset, options)
    return [(name, choice) for (name, _, _), choice in zip(tensors, choices, strict=True)]


def assert_same(shape: Shape, source: Path, preset: Preset, options: TypeOptions) -> None:
    ok, log = llama_quantize(source, source.with_suffix(".out"), preset, options, dry_run=True)
    where = f"{source.stem} {preset.name} {options}"
    if not ok:
        with pytest.raises(InvalidInput):
            ours(shape, preset, options)
        assert "fallback is defined" in log or "determine layer" in log, f"{where}: {log[-300:]}"
        return
    chosen = ours(shape, preset, options)
    wanted = [(name, (c.type.name, "" if c.requested is None else c.requested.name)) for name, c in chosen]
    assert list(logged_types(log).items()) == wanted, where
    if not options.has_imatrix:
        assert (_NEEDS in log) == any(c.requires_imatrix for _, c in chosen), where


USABLE = [preset for preset in PRESETS if preset.type is not None or preset.ftype is None]


@pytest.mark.parametrize("name", SHAPES)
def test_every_preset_chooses_llama_cpps_types(name: str, models: dict[str, Path]) -> None:
    for preset in USABLE:
        for has_imatrix in (False, True):
            assert_same(SHAPES[name], models[name], preset, TypeOptions(has_imatrix=has_imatrix))


OPTIONS = {
    "pure": TypeOptions(pure=True),
    "leave output": TypeOptions(leave_output_tensor=True),
    "output": TypeOptions(output_tensor_type=T.Q8_0),
    "output and pure": TypeOptions(output_tensor_type=T.Q8_0, pure=True),
    "embedding": TypeOptions(token_embedding_type=T.BF16),
    "both": TypeOptions(token_embedding_type=T.Q5_0, output_tensor_type=T.F16),
    "v shifts later layers": TypeOptions(tensor_types=((r"blk\.[0-2]\.attn_v", T.Q8_0),)),
    "the first match counts": TypeOptions(tensor_types=(("ffn_down", T.Q4_K), ("ffn_.*", T.Q3_K), (".*", T.Q6_K))),
    "classes": TypeOptions(tensor_types=((r"^blk\.(1[0-9]|[0-9])\.(attn_[qk]|ffn_(?:up|gate))\.weight$", T.Q5_1),)),
    "counts": TypeOptions(tensor_types=((r"(blk\.[^.]{2}\.)+?attn_\w{1,6}\b", T.IQ4_NL), (r"\dx?\.ffn_u", T.F16))),
    "per-layer table": TypeOptions(token_embedding_type=T.Q8_0, tensor_types=(("per_layer_token", T.Q5_0),)),
    "pure but": TypeOptions(pure=True, tensor_types=(("attn_output", T.Q6_K),)),
}


@pytest.mark.parametrize("label", OPTIONS)
def test_every_option_chooses_llama_cpps_types(label: str, models: dict[str, Path]) -> None:
    for name in ("270m", "untied", "odd-names", "llama-gqa", "bloom"):
        for preset_name in ("Q4_K_M", "Q3_K_M", "IQ2_M", "IQ3_XS", "Q4_0", "Q8_0", "F16"):
            assert_same(SHAPES[name], models[name], find_preset(preset_name), OPTIONS[label])


def test_requires_imatrix_where_llama_cpp_first_refuses(models: dict[str, Path], tmp_path: Path) -> None:
    refused = set()
    for preset in USABLE:
        if preset.name in ("IQ3_M", "IQ3_S"):  # made without one, but slowly
            continue
        ok, log = llama_quantize(models["untied"], tmp_path / "out.gguf", preset)
        needing = [name for name, choice in ours(SHAPES["untied"], preset, TypeOptions()) if choice.requires_imatrix]
        assert ok == (not needing), preset.name
        if needing:
            refused.add(preset.name)
            assert f"offending tensor: {needing[0]}\n" in log
    assert refused == {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


def test_file_order_is_block_then_bytes() -> None:
    names = ["blk.10.a", "output.weight", "blk.2.b", "blk.2.a", "blk.x", "A", "é", "blk.2x.a", "token_embd.weight"]
    expected = ["A", "blk.x", "output.weight", "token_embd.weight", "é", "blk.2.a", "blk.2.b", "blk.2x.a", "blk.10.a"]
    assert file_order(names) == expected


def test_presets_have_llama_cpps_ftypes() -> None:
    for preset in PRESETS:
        if preset.name not in ("COPY", "F32"):
            assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset.name}") == preset.ftype, preset.name
    assert len({preset.ftype for preset in PRESETS}) == len(PRESETS) == 36
    assert all(preset.help for preset in PRESETS)


def test_no_preset_of_llama_cpp_is_missing(models: dict[str, Path]) -> None:
    """Every file type that llama.cpp has a number for, and its quantizer takes, is a preset, and no other is."""
    names = {name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_") for name in dir(llama_cpp) if "_FTYPE_" in name}
    # NVFP4 files are made by converters only; GUESSED is a flag.
    assert {preset.name for preset in PRESETS} - {"F32", "COPY"} == names - {"ALL_F32", "NVFP4", "GUESSED"}
    known = {preset.ftype: preset for preset in PRESETS if preset.ftype is not None}
    for ftype in range(64):
        candidate = Preset("", ftype, None, "")
        ok, log = llama_quantize(models["untied"], Path("unused"), candidate, dry_run=True)
        assert ok == (ftype in known), f"{ftype}: {log[-300:]}"


def test_find_preset_takes_any_case_and_aliases_and_suggests() -> None:
    assert find_preset("q4_k_m").ftype == 15
    assert find_preset("Q4-K-M").name == "Q4_K_M"
    assert {find_preset(alias).name for alias in ALIASES} == {"Q3_K_M", "Q4_K_M", "Q5_K_M"}
    with pytest.raises(InvalidInput, match=r"no preset 'Q4_KM'; did you mean Q4_K_M"):
        find_preset("Q4_KM")
    with pytest.raises(InvalidInput, match="there are F32, BF16"):
        find_preset("hello")


def test_parse_types() -> None:
    assert parse_type("q6_k") is T.Q6_K
    for bad in ("q8_1", "I32", "q9"):
        with pytest.raises(InvalidInput, match="no tensor type"):
            parse_type(bad)
    assert parse_tensor_type(r"ATTN_\D=q8_0") == (r"attn_\D", T.Q8_0)
    for bad in ("attn_k", "=q8_0", "attn_k="):
        with pytest.raises(InvalidInput, match="PATTERN=TYPE"):
            parse_tensor_type(bad)


def test_bits_per_weight() -> None:
    assert [bits_per_weight(t) for t in (T.F32, T.Q8_0, T.Q6_K, T.Q4_K, T.IQ1_S)] == [32, 8.5, 6.5625, 4.5, 1.5625]


def test_an_override_that_does_not_fit_is_refused() -> None:
    tensors = [("token_embd.weight", (8, 640), T.BF16)]
    model, preset = ModelShape("gemma3", 18, 4, 1), find_preset("Q4_K_M")
    with pytest.raises(InvalidInput, match=r"token_embd\.weight: 640 columns do not fit Q4_K blocks of 256"):
        choose_types(tensors, model, preset, TypeOptions(token_embedding_type=T.Q4_K))
    with pytest.raises(InvalidInput, match="I8 is not a type"):
        choose_types(tensors, model, preset, TypeOptions(tensor_types=(("x", T.I8),)))
    with pytest.raises(InvalidInput, match="--tensor-type attn_k=q8_0"):
        fallback("blk.0.attn_k.weight", 96, T.Q1_0)
    assert fallback("x", 96, T.Q4_K) == T.Q5_0
    assert fallback("x", 80, T.Q4_K) == T.F16


def test_copy_keeps_source_types() -> None:
    tensors = [("token_embd.weight", (8, 640), T.BF16), ("blk.0.attn_q.weight", (8, 256), T.Q4_K)]
    choices = choose_types(tensors, ModelShape("gemma3", 18, 4, 1), find_preset("copy"), TypeOptions())
    assert choices == [Choice(T.BF16), Choice(T.Q4_K)]


def test_only_matrices_of_weights_are_quantized() -> None:
    assert is_quantized_by_presets("blk.0.attn_q.weight", (2, 256), "gemma3")
    assert not is_quantized_by_presets("blk.0.attn_q.weight", (1, 256), "gemma3")
    assert not is_quantized_by_presets("blk.0.attn_norm.weight", (2, 256), "gemma3")
    assert not is_quantized_by_presets("blk.0.attn_v_b.weight", (2, 256), "glm5-next")


def test_model_shape_comes_from_metadata_and_broken_values_are_refused() -> None:
    i32 = gguf.GGUFValueType.INT32
    per_layer = KV("gemma3.attention.head_count_kv", gguf.GGUFValueType.ARRAY, [2, 4], i32)
    kv = [entry for entry in SHAPES["4b"].kv() if entry.key != per_layer.key]
    assert model_shape([*kv, per_layer]) == ModelShape("gemma3", 34, 8, 2)
    assert model_shape(kv).gqa == 1
    assert model_shape([KV("general.architecture", gguf.GGUFValueType.STRING, "clip")]).block_count == 0
    for value in (-1, True, "8", 1.5, None, []):
        with pytest.raises(InvalidInput, match=r"gemma3\.expert_count"):
            model_shape([*kv, KV("gemma3.expert_count", i32, value)])


@pytest.mark.parametrize("pattern", ["(", "a)", "*", "[", "[b-a]", "[[:digit:]]", "\\"])
def test_bad_patterns_are_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"^--tensor-type[^\n]*$"):
        choose_types(
            [], ModelShape("gemma3", 18, 4, 1), find_preset("Q4_K_M"), TypeOptions(tensor_types=((pattern, T.Q8_0),))
        )
