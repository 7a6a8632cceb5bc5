"""The check of every model family, of mmprojs, and of faults in their tokenizers and chat templates."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGUFValueType

from borealis_gguf import api
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.quality.report import Report, as_text

from ..helpers.checkpoints import write_json
from ..helpers.families import CHATML, FAMILIES, Family, llama_json, llama_pieces
from ..helpers.gguf_faults import Edit, Weights, with_metadata
from ..helpers.vision_models import SEEING, Miniature


def converted(family: Family, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of `family` and its GGUF, which has passed the quick check."""
    checkpoint = family.write(folder)
    plan = api.plan_convert(checkpoint, folder / "good.gguf", outtype="f32")
    api.execute([plan])
    return checkpoint, plan.path


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_good_files_pass_and_moved_rows_do_not(family: Family, tmp_path: Path) -> None:
    checkpoint, good = converted(family, tmp_path)
    report = api.check(good, checkpoint)
    assert report.ok, as_text(report)
    bad = Weights(good, tmp_path / "bad.gguf")
    name = next(name for name in bad.tensors if name.startswith("blk.0.attn_q") and name.endswith(".weight"))
    rows = bad.bytes(name)
    bad.put(name, np.roll(rows, 1, axis=0))
    assert name in [finding.where for finding in api.check(bad.path, checkpoint, quick=True).failures]


def test_a_normalizer_is_a_known_difference(tmp_path: Path) -> None:
    """A normalizer changes some texts; without its doing, every id must agree."""
    reports: list[Report] = []
    family = next(family for family in FAMILIES if "qwen2" in family.name)
    plan = api.plan_convert(family.write(tmp_path), tmp_path / "good.gguf")
    api.execute([plan], on_report=reports.append)
    note, example, rest = next(s.findings for s in reports[0].sections if s.title == "token ids")
    assert note.status == example.status == "note"
    assert note.what.endswith("texts become other tokens; a GGUF cannot express NFC")
    assert rest.status == "ok" and rest.what.endswith("apart from that")


def planted(key: str, value: Any) -> Edit:
    """`key` with another value, or where there was none."""
    type = GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.UINT32
    return lambda kv: kv.update({f"tokenizer.{key}": KV(f"tokenizer.{key}", type, value)})


def changed_template(old: str, new: str) -> Edit:
    def edit(kv: dict[str, KV]) -> None:
        template = kv["tokenizer.chat_template"]
        assert old in template.value
        kv[template.key] = replace(template, value=template.value.replace(old, new))

    return edit


TEMPLATE, IDS, SPECIAL = "chat template", "token ids", "special tokens"
NONSENSE, ANOTHER_EOS = planted("chat_template", "{{ 'tull' }}"), planted("ggml.eos_token_id", 0)
WITH_IDS = [family for family in FAMILIES if family.name != "plain-model-only"]
NAMED = {family.name: family for family in WITH_IDS}
MISTRAL_7B, MISTRAL_11B = NAMED["normistral-7b-warm-mini"], NAMED["normistral-11b-mini"]
BLOOM, QWEN2 = NAMED["norbloom-7b-scratch-mini"], NAMED["qwen2-mini"]
FAULTS = {
    **{f"{family.name}, nonsense": (family, NONSENSE, TEMPLATE, "tull|found a template") for family in WITH_IDS},
    **{f"{family.name}, eos": (family, ANOTHER_EOS, SPECIAL, "eos: expected 2 '</s>'; found 0") for family in WITH_IDS},
    **{
        f"{family.name}, {pre}": (family, planted("ggml.pre", pre), IDS, r"\d+ of \d+ texts become other tokens")
        for family, pre in ((MISTRAL_11B, "gpt-2"), (MISTRAL_11B, "llama-bpe"), (BLOOM, "gpt-2"), (QWEN2, "llama-bpe"))
    },
    "the checkpoint's own template": (
        MISTRAL_11B,
        planted("chat_template", CHATML),
        TEMPLATE,
        "ids: expected 227 'Ġ', 91 'u'",
    ),
    "no space in front": (
        MISTRAL_11B,
        changed_template('{% set part = " " ~ part %}', ""),
        TEMPLATE,
        "one question: rendering: expected from character ",
    ),
    "no space after a line": (
        MISTRAL_11B,
        changed_template('"\\n "', '"\\n"'),
        TEMPLATE,
        "one question: rendering: ",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_its_section(name: str, tmp_path: Path) -> None:
    """Whatever the tokenizer does that no GGUF can say: it excuses nothing else."""
    family, edit, title, pattern = FAULTS[name]
    plan = api.plan_convert(family.write(tmp_path), tmp_path / "good.gguf", outtype="f32")
    api.execute([plan], check=False)
    report = api.check(with_metadata(plan.path, tmp_path / "bad.gguf", edit), tmp_path / family.name, quick=True)
    lines = [f.line for section in report.sections if section.title == title for f in section.findings]
    assert not {s.title: s.ok for s in report.sections}[title], as_text(report)
    assert any(re.search(pattern, line) for line in lines), as_text(report)


def test_all_known_differences_at_once(tmp_path: Path) -> None:
    reports: list[Report] = []
    plan = api.plan_convert(MISTRAL_11B.write(tmp_path), tmp_path / "good.gguf")
    api.execute([plan], on_report=reports.append)
    found = {section.title: [finding.line for finding in section.findings] for section in reports[0].sections}
    note = "52 of 53 texts become other tokens; a GGUF cannot express Prepend(' '); NFKC; Replace("
    assert found[IDS][0].startswith(note)
    assert found[IDS][2] == "53 texts, apart from that"
    assert found[TEMPLATE][1:] == [
        "15 conversations render other text, which is the same tokens",
        "18 conversations, 3 of them refused, as by the checkpoint's own template",
    ]


def test_a_conversation_with_a_known_difference_is_a_note(tmp_path: Path) -> None:
    """What the template itself says has letters that the normalizer changes."""
    odd = CHATML.replace("> assistant", "> assistant ½ ÆØÅL")
    assert odd != CHATML
    source = MISTRAL_11B.write(tmp_path)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(source / "tokenizer_config.json", settings | {"chat_template": odd})
    plan = api.plan_convert(source, tmp_path / "good.gguf")
    api.execute([plan])
    report = api.check(plan.path, source, quick=True)
    (section,) = [section for section in report.sections if section.title == TEMPLATE]
    assert section.findings[1].status == "note"
    assert section.findings[1].what.startswith(
        "15 of 18 conversations become other tokens; a GGUF cannot express Prepend"
    )
    bad = with_metadata(plan.path, tmp_path / "bad.gguf", changed_template("½", "¾"))
    assert "✗ one question: rendering: " in as_text(api.check(bad, source, quick=True))


def test_sentencepiece_with_a_pre_tokenizer(tmp_path: Path) -> None:
    """A SentencePiece model whose tokenizer.json splits words beforehand, and changes letters."""
    source = MISTRAL_7B.write(tmp_path)
    pieces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    value = llama_json(llama_pieces(), True) | {"normalizer": {"type": "NFKC"}, "pre_tokenizer": pieces}
    write_json(source / "tokenizer.json", value)
    reports: list[Report] = []
    api.execute([api.plan_convert(source, tmp_path / "good.gguf")], on_report=reports.append)
    (section,) = [section for section in reports[0].sections if section.title == IDS]
    note, _, rest = section.findings
    assert "cannot express NFKC; no space before a text that begins with one; no space after a " in note.what
    assert rest.line == "53 texts, apart from that"


@pytest.mark.parametrize("miniature", SEEING, ids=lambda miniature: miniature.name)
def test_mmproj(miniature: Miniature, tmp_path: Path) -> None:
    checkpoint = miniature.write(tmp_path)
    plan = api.plan_mmproj(checkpoint, tmp_path)
    api.execute([plan])
    report = api.check(plan.path, checkpoint)
    assert report.ok, as_text(report)
    assert [section.title for section in report.sections] == ["metadata", "tensors", "weights", "cross check"]
    bad = Weights(plan.path, tmp_path / "bad.gguf")
    bad.swap("v.blk.0.attn_q.weight", "v.blk.0.attn_k.weight")
    assert "it holds v.blk.0.attn_q.weight" in api.check(bad.path, checkpoint, quick=True).failures[0].line
