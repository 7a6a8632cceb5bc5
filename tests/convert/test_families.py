"""Mistral, Llama, BLOOM and Qwen 2: llama.cpp's bytes and entries, and the logits of the checkpoint's own stack."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.convert import describe, file_type, outtypes
from borealis_gguf.convert.architectures import llama
from borealis_gguf.convert.architectures.plain_decoder import read_decoder
from borealis_gguf.errors import InvalidInput
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.quality.cross_check.transformers_definition import definition_of
from borealis_gguf.quantize.presets import find_preset
from borealis_gguf.runtime.model import load
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
from borealis_gguf.runtime.prompting.template_sandbox import render

from ..generate.family_goldens import LENGTHS, LOGITS, positions, prompts
from ..generate.goldens import OUTTYPES
from ..helpers.asking import encode, generate
from ..helpers.checkpoints import write_json
from ..helpers.families import CHATML, FAMILIES, INST, WINDOWED, Family, bloom_shapes
from ..helpers.llama_logits import llama_logits
from ..helpers.llama_quantize import llama_quantize
from ..helpers.llama_tokenizer import tokenize
from ..helpers.lora_adapters import Lora
from ..helpers.norwegian_lines import LINES
from ..helpers.tiny import CODEC
from .test_goldens import as_golden, check_bytes, differences, golden


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_equals_llama_cpp(family: Family, tmp_path: Path) -> None:
    want = golden(family.name)
    model, _ = describe(open_checkpoint(family.write(tmp_path)), "bf16")
    theirs = [[*e, want["file_type"]["bf16"]] if e[0] == "general.file_type" else e for e in want["kv"]]
    ours, theirs = ([e for e in kv if e[0] not in family.purposeful] for kv in (as_golden(model.kv), theirs))
    assert differences(ours, theirs) == []
    assert ours == theirs
    for outtype in OUTTYPES:
        assert file_type(model.tensors, outtype) == want["file_type"][outtype]
        assert " ".join(t.name for t in outtypes(model.tensors, outtype)) == want["types"][outtype]
    check_bytes(tmp_path, model, want["tensors"])


def logits(family: Family, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """llama.cpp's with our F32 file, and transformers', at some positions of every prompt."""
    model, types = describe(open_checkpoint(family.write(folder)), "f32")
    plan = lay_out(folder / "f32.gguf", model, types)
    execute([plan], CODEC)
    found = llama_logits(plan.path, prompts(family.text["vocab_size"]))
    return positions(found), np.load(LOGITS / f"{family.name}.npy")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_logits_are_transformers(family: Family, tmp_path: Path) -> None:
    ours, theirs = logits(family, tmp_path)
    assert np.abs(ours - theirs).max() < family.tolerance * np.abs(theirs).max()
    assert np.array_equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize("family", WINDOWED, ids=lambda f: f.name)
def test_past_a_window_llama_cpp_differs_and_we_say_so(
    family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ours, theirs = logits(family, tmp_path)
    window = family.config["sliding_window"]
    assert [r.getMessage() for r in caplog.records if f"sliding_window is {window}" in r.getMessage()]
    apart = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max()
    at = np.array([*LENGTHS, *(LENGTHS[-1] - back for back in (72, 56, 40, 24, 8))]) - 1
    assert apart[at < window].max() < family.tolerance
    assert apart[at >= window].min() > 100 * family.tolerance


# --- configurations -------------------------------------------------------------------------------------------------


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


MISTRAL, LLAMA, BLOOM = (
    by_name(name) for name in ("normistral-7b-warm-mini", "llama-biased-mini", "norbloom-7b-scratch-mini")
)


def described(family: Family, folder: Path, **changes: Any) -> dict[str, Any]:
    """The entries of `family` with another configuration (None takes a key out); its tensors stay as they are."""
    path = family.write(folder)
    config = {key: value for key, value in (family.config | changes).items() if value is not None}
    write_json(path / "config.json", config)
    model, _ = describe(open_checkpoint(path), "bf16")
    return {kv.key: kv.value for kv in model.kv}


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        (MISTRAL, {"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        (MISTRAL, {"head_dim": 15}, "heads of 15 cannot be turned in pairs"),
        (
            MISTRAL,
            {"head_dim": 32},
            r"its shape is \[32, 64\], but config.json makes it \[64, 64\] \(kv heads × head_dim",
        ),
        (MISTRAL, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; llama.cpp's runtime computes as if it were 'silu'"),
        (MISTRAL, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (MISTRAL, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3'; only linear and yarn"),
        (MISTRAL, {"num_hidden_layers": 1}, r"unknown to this architecture: model\.layers\.1\."),
        (MISTRAL, {"num_hidden_layers": 3}, r"missing: model\.layers\.2\."),
        (MISTRAL, {"vocab_size": 100}, "vocab_size is 100, which leaves"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window is 0; it must be a whole number from 1"),
        (LLAMA, {"tie_word_embeddings": False}, r"tie_word_embeddings is false, but there is no lm_head\.weight"),
        (LLAMA, {"attention_bias": False}, r"unknown to this architecture: .*bias"),
        (LLAMA, {"mlp_bias": False}, r"unknown to this architecture: .*bias"),
        (BLOOM, {"n_head": 7}, "7 heads cannot share 96 columns"),
        (BLOOM, {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        (BLOOM, {"tie_word_embeddings": False}, r"there is no lm_head\.weight"),
        (BLOOM, {"quantization_config": {}, "architectures": ["BloomX"]}, "'BloomX' is not known; known are"),
    ],
)
def test_what_cannot_be_right_is_refused(family: Family, changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=match) as caught:
        described(family, tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_yarn_and_defaults_of_transformers(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    kv = described(MISTRAL, tmp_path, rope_scaling=yarn, max_position_embeddings=None, rms_norm_eps=None)
    assert kv["llama.rope.scaling.type"] == "yarn"
    assert kv["llama.rope.scaling.original_context_length"] == 512
    assert kv["llama.context_length"] == 131072
    assert kv["llama.attention.layer_norm_rms_epsilon"] == 1e-6


@pytest.mark.parametrize(
    ("said", "kv_heads"), [({}, 8), ({"num_key_value_heads": None}, 16), ({"num_key_value_heads": 4}, 4)]
)
def test_null_key_value_heads_are_as_many_as_heads(said: dict[str, Any], kv_heads: int) -> None:
    """So says transformers' class, whose 8 stand for a config.json that is silent."""
    names: dict[str, Any] = {"architectures": ["MistralForCausalLM"]}
    config = {**names, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 2, **said}
    assert read_decoder("config.json", config, llama.MISTRAL).kv_heads == kv_heads
    _, definition = definition_of(config)
    assert definition and definition.read_settings(config)["num_key_value_heads"] == kv_heads


@pytest.mark.parametrize(("window", "warned"), [(2048, False), (2047, True), (None, True), (4096, False)])
def test_a_window_counts_if_it_is_shorter_than_the_context(
    window: int | None, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where config.json is silent, a Mistral has a window of 4096."""
    described(MISTRAL, tmp_path, sliding_window=window, max_position_embeddings=8192 if window is None else 2048)
    assert ("has no window in llama.cpp" in caplog.text) == warned


@pytest.mark.parametrize(
    ("changes", "context", "warned"),
    [
        ({}, 2048, False),
        ({"seq_length": 4096}, 4096, False),
        ({"seq_length": None, "max_position_embeddings": 1024}, 1024, False),
        ({"seq_length": None}, 2048, True),
    ],
)
def test_blooms_context_is_its_real_length(
    changes: dict[str, Any], context: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Purposeful difference: llama.cpp's converter writes the number of columns where there is no seq_length."""
    assert described(BLOOM, tmp_path, **changes)["bloom.context_length"] == context
    assert ("no seq_length" in caplog.text) == warned


def test_blooms_older_names(tmp_path: Path) -> None:
    kv = described(
        replace(BLOOM, shapes=lambda c: bloom_shapes(BLOOM.config, prefix="")),
        tmp_path,
        n_layer=None,
        n_head=None,
        hidden_size=None,
        num_hidden_layers=2,
        num_attention_heads=6,
        n_embed=96,
    )
    assert (kv["bloom.block_count"], kv["bloom.attention.head_count"], kv["bloom.embedding_length"]) == (2, 6, 96)


def test_a_head_that_repeats_the_embedding_is_dropped(tmp_path: Path) -> None:
    class Tied(Family):
        def tensors(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
            tensors = super().tensors()
            return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    tied = Tied("tied", LLAMA.config, tokenizer=LLAMA.tokenizer, shapes=LLAMA.shapes)
    model, _ = describe(open_checkpoint(tied.write(tmp_path)), "bf16")
    assert "output.weight" not in [t.name for t in model.tensors]
    described(LLAMA, tmp_path)


# --- quantized and run ----------------------------------------------------------------------------------------------


def wide(family: Family, **changes: Any) -> Family:
    """`family` with rows that fit blocks of 256."""
    changes = changes or {"hidden_size": 256, "intermediate_size": 512}
    return replace(family, name=f"wide-{family.name}", config=family.config | changes)


SPEAKING = tuple(
    wide(by_name(name))
    for name in ("normistral-7b-warm-instruct-mini", "normistral-7b-warm-instruct-nora", "normistral-11b-mini")
)
"""Those with a chat template. The 11b's heads are narrower than its columns: rows of 128 fit no block of 256."""

WIDE = (
    wide(MISTRAL),
    wide(BLOOM, hidden_size=256, n_head=8),
    wide(by_name("qwen2-mini")),
    wide(by_name("normistral-7b-scratch-mini")),
    wide(by_name("norbloom-7b-scratch-nora"), hidden_size=256, n_head=8),
    *SPEAKING,
)


@pytest.mark.parametrize("family", WIDE, ids=lambda f: f.name)
def test_one_pass_is_convert_then_llama_quantize(family: Family, tmp_path: Path) -> None:
    """Rows change places before blocks are made of them, whatever the size of the chunks."""
    source = family.write(tmp_path)
    api.execute([api.plan_convert(source, tmp_path / "f32.gguf", outtype="f32")])
    plans = api.plan_quantize(source, ["Q4_K_M", "Q8_0", "IQ4_XS"], tmp_path)
    execute(plans, CODEC, jobs=3, chunk_weights=5000)
    for plan in plans:
        ok, log = llama_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", find_preset(plan.label))
        assert ok, log
        assert plan.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), plan.label


@pytest.mark.parametrize("family", WIDE, ids=lambda f: f.name)
def test_what_was_quantized_runs(family: Family, tmp_path: Path) -> None:
    (plan,) = api.plan_quantize(family.write(tmp_path), ["Q4_K_M"], tmp_path)
    api.execute([plan])
    with load(plan.path, context=128) as model:
        ids = encode(model, "Hovedstaden i Norge heter", raw=True)
        assert (ids[0] == 1) == (family.name not in ("wide-norbloom-7b-scratch-mini", "wide-qwen2-mini"))  # a BOS
        assert len(generate(model, "Hovedstaden i Norge heter", raw=True, max_tokens=8, seed=1)) > 0


@pytest.mark.parametrize("family", SPEAKING, ids=lambda f: f.name)
def test_what_was_quantized_chats(family: Family, tmp_path: Path) -> None:
    """What the model reads is what the checkpoint's tokenizer makes of what its template renders."""
    source = family.write(tmp_path)
    (plan,) = api.plan_quantize(source, ["Q4_K_M"], tmp_path)
    api.execute([plan])
    wanted = Tokenizer.from_file(str(source / "tokenizer.json")).encode(
        render(ChatTemplate(INST if family.pre is None else CHATML, "<s>"), [{"role": "user", "content": QUESTION}]),
        add_special_tokens=False,
    )
    with load(plan.path, context=128) as model:
        assert encode(model, QUESTION) == wanted.ids
        assert len(generate(model, QUESTION, max_tokens=8, seed=1)) > 0


NORA = [family for family in FAMILIES if family.pre == "tekken"]
QUESTION = "Hva heter hovedstaden i Norge?\nSvar på nynorsk, er du snill: æøå."
CUT = {5, 22}
"""Of LINES, that with upper-case Æ and Ø, and that with emoji: more than 24 bytes in a row."""


@pytest.mark.parametrize("family", NORA, ids=lambda f: f.name)
def test_ids_are_those_of_the_nora_tokenizer(family: Family, tmp_path: Path) -> None:
    """All that llama.cpp leaves out is the normalizer, and words that it cuts elsewhere. (Its converter stops at such
    a vocabulary: "BPE pre-tokenizer was not recognized".)"""
    source = family.write(tmp_path)
    model, _ = describe(open_checkpoint(source), "bf16")
    theirs = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert theirs.normalizer is not None
    found = tokenize(model.kv, [theirs.normalizer.normalize_str(line) for line in LINES])
    wanted = [tuple(theirs.encode(line, add_special_tokens=False).ids) for line in LINES]
    differ = {i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b}
    assert differ == CUT


@dataclass(frozen=True)
class Merged(Family):
    """A family whose weights have been changed by an adapter beforehand."""

    lora: Lora | None = None

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        tensors = super().tensors()
        updates = self.lora.tensors() if self.lora else {}
        for name in [name for name in updates if name.endswith("lora_A.weight")]:
            home = name.removeprefix("base_model.model.").replace("lora_A.", "")
            a, b = (
                np.frombuffer(data, np.float32).reshape(shape)
                for _, shape, data in (updates[name], updates[name.replace("lora_A", "lora_B")])
            )
            dtype, shape, data = tensors[home]
            weight = np.frombuffer(data, np.float32).reshape(shape) + 0.25 * 8 / 4 * (b @ a)
            tensors[home] = dtype, shape, weight.astype(np.float32).tobytes()
        return tensors


@pytest.mark.parametrize(
    ("family", "modules"), [(MISTRAL, ("q_proj", "k_proj", "o_proj")), (BLOOM, ("query_key_value", "dense"))]
)
def test_an_adapter_is_merged_before_rows_change_places(
    family: Family, modules: tuple[str, ...], tmp_path: Path
) -> None:
    plain = replace(family, dtype="F32", shards=1)
    shapes = family.shapes(family.config)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    lora = Lora("lora", {}, dict.fromkeys(modules, 4), prefix="base_model.model.", shapes=matrices)
    merged = Merged("merged", plain.config, "F32", tokenizer=plain.tokenizer, shapes=plain.shapes, lora=lora)
    source, adapter = plain.write(tmp_path), lora.write(tmp_path)
    plans = [
        api.plan_convert(source, tmp_path / "a.gguf", outtype="f32", loras=[(adapter, 0.25)]),
        api.plan_convert(merged.write(tmp_path), tmp_path / "b.gguf", outtype="f32"),
    ]
    execute(plans[:1], CODEC, chunk_weights=700)
    execute(plans[1:], CODEC)
    for ours, theirs in zip(plans[0].tensors, plans[1].tensors, strict=True):
        one, other = (
            np.fromfile(plan.path, np.float32, t.nbytes // 4, offset=t.offset)
            for plan, t in zip(plans, (ours, theirs), strict=True)
        )
        assert ours.tensor.name == theirs.tensor.name
        assert np.abs(one - other).max() < 1e-6, ours.tensor.name
