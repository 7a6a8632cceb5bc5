"""Planted faults: llama.cpp loads every one without an error, and the check fails each."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import GGUFValueType

from borealis_gguf import Report, api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.convert.describe import describe
from borealis_gguf.quality.check import check_tensors
from borealis_gguf.quality.report import as_text

from ..helpers import gguf_faults
from ..helpers.gguf_faults import Edit, Plant, Weights, cut_vocabulary, drop, set_item, set_value, with_metadata

BOS, EOS, START, END = 2, 1, 4, 5
GGML = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
CONTEXT = "gemma3.context_length"

METADATA: dict[str, tuple[Edit, list[str]]] = {
    "wrong eos": (
        set_value(f"{GGML}eos_token_id", 6),
        ["eos: expected 1 '<eos>'; found 6", "eos_token_id: key: expected 1; found 6"],
    ),
    "bos and eos exchanged": (
        lambda kv: (set_value(f"{GGML}bos_token_id", EOS)(kv), set_value(f"{GGML}eos_token_id", BOS)(kv)),
        ["bos: expected 2 '<bos>'; found 1 '<eos>'", "before every text: expected 2 '<bos>'; found 1 '<eos>'"],
    ),
    "wrong bos": (set_value(f"{GGML}bos_token_id", 0), ["bos: expected 2 '<bos>'; found 0 '<pad>'"]),
    "no bos before a text": (
        set_value(f"{GGML}add_bos_token", False),
        ["before every text: expected 2 '<bos>'; found nothing"],
    ),
    "lost template": (drop(TEMPLATE), ["expected a template; found none", f"{TEMPLATE}: key: .*found no such key"]),
    "another template": (
        lambda kv: set_value(TEMPLATE, kv[TEMPLATE].value.replace('\\n" + (prefix', ' " + (prefix'))(kv),
        ["one question: rendering: expected from character 24: ", f"{TEMPLATE}: key: expected from character"],
    ),
    "a template that trims no more": (
        lambda kv: set_value(TEMPLATE, kv[TEMPLATE].value.replace(" | trim", ""))(kv),
        ["padded texts: rendering: "],
    ),
    "a template with two BOS": (
        lambda kv: set_value(TEMPLATE, "{{ bos_token }}" + kv[TEMPLATE].value)(kv),
        ["one question: BOS: expected 1; found 2"],
    ),
    "changed rope base": (set_value("gemma3.rope.freq_base", 10000.0), ["rope.freq_base: key: .*1000000; found 10000"]),
    "changed window": (set_value("gemma3.attention.sliding_window", 512), ["sliding_window: key: .*128; found 512"]),
    "changed epsilon": (set_value("gemma3.attention.layer_norm_rms_epsilon", 1e-5), ["rms_epsilon: key: "]),
    "cut vocabulary": (cut_vocabulary, ["tokens: key: expected 4096 items; found 4000", "4000 items, but token_embd"]),
    "the end of a turn is text": (
        set_item(f"{GGML}token_type", END, 1),
        [r"token_type: key: expected \[5\] 3; found 1"],
    ),
    "an added token is not": (
        set_item(f"{GGML}token_type", 9, 1),
        [r"text '.*', token \d+: ids: expected \d+ .*; found \d+ "],
    ),
    "two tokens exchanged": (
        lambda kv: (
            set_item(f"{GGML}tokens", 1000, kv[f"{GGML}tokens"].value[1001])(kv),
            set_item(f"{GGML}tokens", 1001, "hei og hå")(kv),
        ),
        [r"tokens: key: expected \[1000\] .*\(2 of 4096 items differ\)"],
    ),
    "scores all the same": (
        lambda kv: set_value(f"{GGML}scores", (0.0,) * 4096)(kv),
        [r"scores: key: .*items differ", r"of \d+ texts become other tokens"],
    ),
    "a space before every text": (set_value(f"{GGML}add_space_prefix", True), ["texts become other tokens"]),
    "a value of another type": (
        lambda kv: kv.update({CONTEXT: replace(kv[CONTEXT], type=GGUFValueType.UINT64)}),
        ["context_length: key: expected the type UINT32; found the type UINT64"],
    ),
}

WEIGHTS: dict[Plant, str] = {
    gguf_faults.swapped_layers: "blk.2.ffn_up.weight: .* it holds blk.3.ffn_up.weight",
    gguf_faults.swapped_kinds: "blk.1.ffn_up.weight: .* it holds blk.1.ffn_gate.weight",
    gguf_faults.swapped_shapes: "blk.4.ffn_up.weight: weights: .*; found \\d",
    gguf_faults.permuted_head: "blk.0.attn_q.weight: .* row 0 holds row 64 of the source",
    gguf_faults.rotary_permutation: "blk.5.attn_k.weight: .* rows stand in other places: row \\d+ holds row \\d+ of",
    gguf_faults.norm_without_one: "blk.3.ffn_norm.weight: .* every weight is 1 too small",
    gguf_faults.scaled: r"blk.2.attn_v.weight: .* the weights are scaled by 1.05",
    gguf_faults.negated: r"blk.2.attn_output.weight: .* the weights are scaled by -(1|0.99)",
    gguf_faults.cut_off_rows: "token_embd.weight: ",
    gguf_faults.nan_in_a_norm: "output_norm.weight: weights: expected finite weights; found NaN or infinity in row 0",
}

ONLY_FULL: dict[Plant, str] = {
    gguf_faults.nan_in_a_scale: "blk.1.attn_q.weight: .*found NaN or infinity in row 33",
    gguf_faults.infinity_in_a_scale: "blk.1.attn_q.weight: .*found NaN or infinity in row 0",
    gguf_faults.flipped_block: "blk.5.ffn_down.weight: .*row 200",
    gguf_faults.flipped_bit: "blk.0.ffn_gate.weight: .*changed weights in row 511",
}


def check_weights(path: Path, checkpoint: Path, quick: bool) -> Report:
    """A report with the sections on tensors alone."""
    source, _ = describe(open_checkpoint(checkpoint), "f32")
    sections = check_tensors(read_gguf(path), source, api.CODEC, quick=quick)
    return Report(path, str(checkpoint), quick, sections, 0.0)


def failed(report: Report, *patterns: str) -> None:
    lines = [finding.line for finding in report.failures]
    for pattern in patterns:
        assert any(re.search(pattern, line) for line in lines), (pattern, as_text(report))
    assert not report.ok
    assert "✗" in as_text(report)


@pytest.mark.parametrize("name", METADATA)
def test_metadata(tmp_path: Path, nano: Path, nano_q8: Path, name: str) -> None:
    edit, patterns = METADATA[name]
    bad = with_metadata(nano_q8, tmp_path / "bad.gguf", edit)
    failed(api.check(bad, nano, quick=True), *patterns)


@pytest.mark.parametrize("preset", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("plant", WEIGHTS, ids=lambda plant: plant.__name__)
def test_weights(tmp_path: Path, nano: Path, nano_quantized: dict[str, Path], plant: Plant, preset: str) -> None:
    bad = Weights(nano_quantized[preset], tmp_path / "bad.gguf")
    plant(bad)
    failed(check_weights(bad.path, nano, quick=True), WEIGHTS[plant])


@pytest.mark.parametrize("preset", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("plant", ONLY_FULL, ids=lambda plant: plant.__name__)
def test_weights_that_only_the_whole_check_reads(
    tmp_path: Path, nano: Path, nano_quantized: dict[str, Path], plant: Plant, preset: str
) -> None:
    bad = Weights(nano_quantized[preset], tmp_path / "bad.gguf")
    plant(bad)
    failed(check_weights(bad.path, nano, quick=False), ONLY_FULL[plant])
