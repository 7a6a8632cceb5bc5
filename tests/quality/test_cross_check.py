"""The cross check finds errors in convert's own tables, which both sides of every other comparison share."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGUFValueType

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert import rows
from borealis_gguf.convert.architectures import bloom, gemma3, llama, plain_decoder, qwen2, siglip
from borealis_gguf.convert.architectures.rope_scaling import Scaling
from borealis_gguf.convert.describe import ARCHITECTURES, VISION
from borealis_gguf.convert.rows import Row
from borealis_gguf.convert.tokenizers.special_tokens import special_kv
from borealis_gguf.pipeline.plan import FilePlan, RowMap
from borealis_gguf.quality.cross_check import transformers_definition, transformers_settings
from borealis_gguf.quality.cross_check.cross_check import TITLE, cross_check
from borealis_gguf.quality.report import Report, Section, as_text

from ..convert.test_goldens import golden
from ..generate.config_defaults import CLASSES, RECORDED
from ..generate.goldens import GOLDENS
from ..helpers.checkpoints import MINIATURES, TIED_HEAD, Miniature
from ..helpers.families import FAMILIES
from ..helpers.gguf_faults import Weights
from ..helpers.lora_adapters import lora_of
from ..helpers.vision_models import SEEING
from .test_check import write_matrix

EVERY = (*FAMILIES, *MINIATURES, TIED_HEAD, *SEEING)
BY_NAME = {miniature.name: miniature for miniature in EVERY}
NAMED = {family.name: family for family in FAMILIES}
MISTRAL, INSTRUCT = NAMED["normistral-7b-warm-mini"], NAMED["normistral-7b-warm-instruct-mini"]
LLAMA, MISTRAL_11B = NAMED["llama-biased-mini"], NAMED["normistral-11b-mini"]
BLOOM, QWEN2 = NAMED["norbloom-7b-scratch-mini"], NAMED["qwen2-mini"]
GEMMA, GEMMA_27B, SEES = BY_NAME["borealis-270m-mini"], BY_NAME["borealis-27b-mini"], SEEING[0]
PRESETS = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S", "Q2_K", "IQ4_XS", "Q5_0", "Q2_0", "TQ2_0", "TQ1_0")


def checked(plan: FilePlan, quick: bool) -> Section:
    return cross_check(read_gguf(plan.path), plan.model, api.CODEC, quick=quick)


# --- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))[CLASSES[name]]
    rope = recorded.get("rope_parameters", {})
    recorded["rope_theta"] = rope.get("full_attention", rope).get("rope_theta")
    recorded["rope_local_base_freq"] = rope.get("sliding_attention", {}).get("rope_theta")
    recorded["sliding_window_pattern"] = recorded.get("_sliding_window_pattern")
    defaults = getattr(transformers_settings, name)
    assert {key: value for key, value in defaults.items() if value is not None} == {
        key: recorded[key] for key, value in defaults.items() if value is not None
    }


@pytest.mark.parametrize("name", [path.stem for path in sorted(GOLDENS.glob("*.json")) if path.stem != "nano-nb-7m"])
def test_settings_are_those_that_llama_cpps_converter_writes(name: str) -> None:
    config = BY_NAME[name.removeprefix("mmproj-")].config
    _, definition = transformers_definition.definition_of(config, vision=name.startswith("mmproj-"))
    assert definition is not None
    converted: dict[str, tuple[str, Any]] = {
        key: (type, value[0] if value else None) for key, type, *value in golden(name)["kv"]
    }
    settings = definition.read_settings(config)
    for key, setting in definition.keys.items():
        type, value = converted.get(f"{definition.prefix}.{key}", ("", None))
        expected = settings.get(setting)
        assert (expected is None) == (value is None), key
        if expected is not None:
            assert type == (
                "STRING"
                if setting == "rope_type"
                else "FLOAT32"
                if setting in transformers_settings.FLOATS
                else "UINT32"
            )
            assert value == (float(np.float32(expected)) if type == "FLOAT32" else expected), key
    assert converted["general.architecture"][1] == definition.architecture
    if not name.startswith("mmproj-"):
        assert converted["tokenizer.ggml.tokens"][1]["items"] == settings["vocab_size"]


# --- good files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("miniature", EVERY, ids=lambda miniature: miniature.name)
def test_good_files_pass_in_every_type(miniature: Miniature, tmp_path: Path) -> None:
    source = miniature.write(tmp_path)
    plans = [api.plan_convert(source, tmp_path, outtype=outtype) for outtype in ("f32", "f16", "bf16")]
    plans += api.plan_quantize(source, PRESETS, tmp_path)  # and what the model sees with, if it does
    api.execute(plans, check=False)
    for plan in plans:
        for quick in (True, False):
            section = checked(plan, quick)
            assert section.ok, (plan.label, section)
            assert [finding.status for finding in section.findings] == ["ok", "ok"]


def test_types_that_need_a_matrix(nano: Path, tmp_path: Path) -> None:
    matrix = write_matrix(tmp_path / "imatrix.gguf", nano)
    plans = api.plan_quantize(nano, ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS"], tmp_path, imatrix=matrix)
    api.execute(plans, check=False)
    assert [checked(plan, quick=True).ok for plan in plans] == [True] * 5


def test_the_section_counts_keys_tensors_and_rows(tmp_path: Path) -> None:
    plan = api.plan_convert(GEMMA_27B.write(tmp_path), tmp_path)
    api.execute([plan], check=False)
    counts = [[finding.what for finding in checked(plan, quick).findings] for quick in (True, False)]
    assert counts == [
        ["17 keys are config.json's", "28 tensors, 133 rows are what the checkpoint's files hold"],
        ["17 keys are config.json's", "808 tensors, 3853 rows are what the checkpoint's files hold"],
    ]


def test_every_architecture_of_convert_has_a_definition() -> None:
    assert transformers_definition.DEFINITIONS.keys() == ARCHITECTURES.keys()
    assert transformers_definition.VISION.keys() == VISION.keys()


def test_tensors_with_merged_adapters_are_left_out(tmp_path: Path) -> None:
    lora = lora_of(replace(MISTRAL, dtype="F32", shards=1))
    source = MISTRAL.write(tmp_path)
    plan = api.plan_convert(source, tmp_path, loras=[(lora.write(tmp_path), 0.25)])
    api.execute([plan])
    changed = sum(bool(t.source.updates) for t in plan.model.tensors)
    keys, weights = checked(plan, quick=True).findings
    assert changed > 0 and weights.what.startswith(f"{21 - changed} tensors, ")
    assert keys.status == weights.status == "ok"
    # checked as if nothing had been merged, it fails
    assert not api.check(plan.path, source).ok


def test_a_gguf_as_source_has_no_cross_check(nano: Path, nano_bf16: Path, nano_q4: Path, tmp_path: Path) -> None:
    assert TITLE not in [section.title for section in api.check(nano_q4, nano_bf16, quick=True).sections]
    assert TITLE in [section.title for section in api.check(nano_q4, nano, quick=True).sections]


def test_an_undefined_architecture_is_a_note(nano: Path, nano_q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(transformers_definition.DEFINITIONS, "Gemma3ForCausalLM")
    report = api.check(nano_q4, nano, quick=True)
    assert report.ok
    assert [note.line for note in report.notes] == ["none: Gemma3ForCausalLM is defined only once"]


# --- errors in convert ----------------------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """`patch` makes convert wrong; `finding` is what the cross check finds first."""

    name: str
    miniature: Miniature
    patch: Patch
    finding: str
    mmproj: bool = False

    def plan(self, folder: Path) -> FilePlan:
        source = self.miniature.write(folder)
        return api.plan_mmproj(source, folder) if self.mmproj else api.plan_convert(source, folder)


def changed_rows(module: Any, change: Callable[[Row], Row], name: str = "ROWS") -> Patch:
    return lambda patch: patch.setattr(module, name, tuple(map(change, getattr(module, name))))


def exchanged(module: Any, a: str, b: str) -> Patch:
    """Two kinds of tensors under each other's names."""
    a, b = f"blk.{{bid}}.{a}.weight", f"blk.{{bid}}.{b}.weight"
    return changed_rows(module, lambda row: replace(row, target={a: b, b: a}.get(row.target, row.target)))


def unordered(row: Row) -> Row:
    return replace(row, order=None)


def unshifted(row: Row) -> Row:
    return replace(row, shift=0.0)


def changed_keys(module: Any, change: Callable[[Any], Any]) -> Patch:
    """Keys of a configuration that was understood wrongly."""
    keys = module.keys
    return lambda patch: patch.setattr(module, "keys", lambda config: keys(change(config)))


def exchanged_bases(config: Any) -> Any:
    return replace(config, rope=replace(config.rope, theta=config.rope.local_theta, local_theta=config.rope.theta))


def one_row_fewer(patch: pytest.MonkeyPatch) -> None:
    read = bloom.read_config
    patch.setattr(bloom, "read_config", lambda *given: (c := read(*given)) and replace(c, vocabulary=c.vocabulary - 1))


def layers_backwards(patch: pytest.MonkeyPatch) -> None:
    names = rows._row_names
    patch.setattr(rows, "_row_names", lambda row, n: [(n - 1 - i if n > 1 else i, name) for i, name in names(row, n)])


def changed_special(kind: str, id: int) -> Patch:
    key = f"tokenizer.ggml.{kind}_token_id"

    def changed(*given: Any, **named: Any) -> tuple[KV, ...]:
        return tuple(replace(kv, value=id) if kv.key == key else kv for kv in special_kv(*given, **named))

    return lambda patch: patch.setattr("borealis_gguf.convert.tokenizers.byte_level_bpe.special_kv", changed)


def straight(self: RowMap, start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop)


NO_ORDER = r"blk.0.attn_q.weight: weights: expected model.layers.0.self_attn.q_proj.weight, the two halves of each "
FAULTS = (
    Fault("Q and K as they stand", MISTRAL, changed_rows(llama, unordered), NO_ORDER),
    Fault("Q and K as they stand, heads of 32", MISTRAL_11B, changed_rows(llama, unordered), NO_ORDER),
    Fault(
        "biases as they stand",
        LLAMA,
        changed_rows(llama, unordered, "ATTENTION_BIAS"),
        r"blk.0.attn_q.bias: weights: expected model.layers.0.self_attn.q_proj.bias, the two halves of each head's",
    ),
    Fault(
        "Q and K in an order that Qwen has not",
        QWEN2,
        lambda patch: patch.setattr(qwen2, "QWEN2_ROWS", (*llama.ROWS, *llama.ATTENTION_BIAS[:3])),
        "blk.0.attn_q.weight: weights: expected model.layers.0.self_attn.q_proj.weight; found others, in ",
    ),
    Fault("an executor without orders", MISTRAL, lambda p: p.setattr(RowMap, "rows", straight), NO_ORDER),
    Fault(
        "q, k and v head by head",
        BLOOM,
        changed_rows(bloom, unordered),
        r"blk.0.attn_qkv.weight: weights: expected transformer.h.0.self_attention.query_key_value.weight, all heads' q",
    ),
    Fault(
        "norms less one",
        GEMMA,
        changed_rows(gemma3, unshifted),
        "output_norm.weight: weights: expected model.norm.weight, and 1 added; found others, in 1 of 1 rows",
    ),
    Fault(
        "norms more one",
        MISTRAL,
        changed_rows(llama, lambda row: replace(row, shift=1.0 if "norm" in row.target else 0.0)),
        "output_norm.weight: weights: expected model.norm.weight; found others, in 1 of 1 rows",
    ),
    Fault(
        "the projector's norm less one",
        SEES,
        changed_rows(siglip, unshifted),
        r"mm.soft_emb_norm.weight: weights: expected multi_modal_projector.mm_soft_emb_norm.weight, and 1 added",
        mmproj=True,
    ),
    Fault(
        "gate and up exchanged",
        MISTRAL,
        exchanged(llama, "ffn_gate", "ffn_up"),
        "blk.0.ffn_gate.weight: weights: expected model.layers.0.mlp.gate_proj.weight; found others, in 8 of 8 rows",
    ),
    Fault(
        "Gemma's norms as a Llama has them",
        GEMMA,
        exchanged(gemma3, "post_attention_norm", "ffn_norm"),
        "blk.0.post_attention_norm.weight: weights: expected model.layers.0.post_attention_layernorm.weight, and 1 ",
    ),
    Fault("layers backwards", MISTRAL, layers_backwards, "blk.0.attn_v.weight: weights: "),
    Fault(
        "rope bases exchanged",
        GEMMA,
        changed_keys(gemma3, exchanged_bases),
        r"gemma3.rope.freq_base: key: expected 1000000 \(rope_theta\); found 10000",
    ),
    Fault(
        "no rope scaling",
        GEMMA_27B,
        changed_keys(gemma3, lambda config: replace(config, rope=replace(config.rope, scaling=Scaling()))),
        r"gemma3.rope.scaling.type: key: expected linear \(rope_type\); found none",
    ),
    Fault(
        "another rope base",
        INSTRUCT,
        changed_keys(llama, lambda plain_decoder: replace(plain_decoder, theta=10000.0)),
        r"llama.rope.freq_base: key: expected 500000 \(rope_theta\); found 10000",
    ),
    Fault(
        "another epsilon",
        MISTRAL,
        changed_keys(llama, lambda plain_decoder: replace(plain_decoder, eps=1e-6)),
        r"llama.attention.layer_norm_rms_epsilon: key: expected 1e-05 \(rms_norm_eps\); found 1e-06",
    ),
    Fault(
        "a window where there is none",
        BY_NAME["full-attention-yarn"],
        changed_keys(gemma3, lambda config: replace(config, window=512)),
        r"gemma3.attention.sliding_window: key: expected none \(window\); found 512",
    ),
    Fault(
        "heads that share nothing",
        MISTRAL,
        changed_keys(llama, lambda plain_decoder: replace(plain_decoder, kv_heads=plain_decoder.heads)),
        r"llama.attention.head_count_kv: key: expected 2 \(num_key_value_heads\); found 4",
    ),
    Fault(
        "a context as long as rows are wide",
        BLOOM,
        changed_keys(bloom, lambda config: replace(config, context=config.hidden)),
        r"bloom.context_length: key: expected 2048 \(context\); found 96",
    ),
    Fault(
        "a number of another type",
        MISTRAL,
        lambda patch: patch.setattr(plain_decoder, "F32", GGUFValueType.FLOAT64),
        "llama.attention.layer_norm_rms_epsilon: key: expected the type FLOAT32; found the type FLOAT64",
    ),
    Fault(
        "another end",
        BLOOM,
        changed_special("eos", 6),
        r"tokenizer.ggml.eos_token_id: key: expected 2 \(eos_token, '</s>'\); found 6",
    ),
    Fault("a token fewer", BLOOM, one_row_fewer, r"tokens: expected 1464 \(vocab_size\); found 1463"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_check_finds_an_error_in_convert(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cross check finds it: the error is on both sides of every other comparison, the quick check's too."""
    fault.patch(monkeypatch)
    plan = fault.plan(tmp_path)
    api.execute([plan])
    source = fault.miniature.write(tmp_path_of(tmp_path))
    for quick, form in ((True, "quick check"), (False, "check")):
        report = api.check(plan.path, source, quick=quick)
        assert [section.title for section in report.sections if not section.ok] == [TITLE], as_text(report)
        assert re.match(fault.finding, report.failures[0].line), as_text(report)
        assert re.match(rf"{form} of .* failed: {fault.finding}", report.verdict)
        assert "\n" not in report.verdict


def tmp_path_of(folder: Path) -> Path:
    (folder / "again").mkdir()
    return folder / "again"


# --- faults in a file -----------------------------------------------------------------------------------------------


def test_an_untied_output_matrix_may_not_be_missing(tmp_path: Path) -> None:
    miniature = BY_NAME["untied-f16"]
    plan = api.plan_convert(miniature.write(tmp_path), tmp_path)
    without = replace(plan, tensors=tuple(t for t in plan.tensors if t.tensor.name != "output.weight"))
    model = replace(plan.model, tensors=tuple(t.tensor for t in without.tensors))
    report = checked_as(model, without, tmp_path)
    assert [finding.line for finding in report.failures] == [
        "token_embd.weight: weights: expected lm_head.weight; found others, in 8 of 8 rows that were read"
    ]


def checked_as(model: Any, plan: FilePlan, folder: Path) -> Report:
    from borealis_gguf.pipeline.layout import lay_out

    written = lay_out(folder / "x.gguf", model, [t.type for t in plan.tensors])
    api.execute([written], check=False)
    return Report(written.path, "", True, (checked(written, quick=True),), 0.0)


@pytest.mark.parametrize("preset", ["Q8_0", "Q4_K_M", "Q2_K", "TQ1_0"])
def test_one_reordered_attention_head_is_found_in_every_type(preset: str, tmp_path: Path) -> None:
    (plan,) = api.plan_quantize(MISTRAL.write(tmp_path), [preset], tmp_path)
    api.execute([plan], check=False)
    bad = Weights(plan.path, tmp_path / "bad.gguf")
    data = bad.bytes("blk.1.attn_q.weight")
    data[16:32] = data[16:32].reshape(8, 2, -1).swapaxes(0, 1).reshape(16, -1)
    bad.put("blk.1.attn_q.weight", data)
    section = cross_check(read_gguf(bad.path), plan.model, api.CODEC, quick=True)
    assert [finding.where for finding in section.findings if finding.status == "failed"] == ["blk.1.attn_q.weight"]
