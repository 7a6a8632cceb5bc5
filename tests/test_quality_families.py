"""The check knows no architecture: what another family's rows, tokenizer or vision side mean comes from the plan."""

from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.quality.report import Report, as_text

from .families import FAMILIES, Family
from .faults import Weights
from .seeing import SEEING, Miniature


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


def test_what_no_gguf_can_say_is_told_and_the_rest_still_checked(tmp_path: Path) -> None:
    """A normalizer changes some texts; without its doing, every id must agree."""
    reports: list[Report] = []
    family = next(family for family in FAMILIES if "qwen2" in family.name)
    plan = api.plan_convert(family.write(tmp_path), tmp_path / "good.gguf")
    api.execute([plan], on_report=reports.append)
    told, example, rest = next(section.findings for section in reports[0].sections if section.title == "token ids")
    assert told.status == example.status == "note"
    assert told.what.endswith("texts become other tokens: no GGUF has NFC")
    assert rest.status == "ok" and rest.what.endswith("were it not for that")


@pytest.mark.parametrize("miniature", SEEING, ids=lambda miniature: miniature.name)
def test_the_side_that_sees(miniature: Miniature, tmp_path: Path) -> None:
    checkpoint = miniature.write(tmp_path)
    plan = api.plan_mmproj(checkpoint, tmp_path)
    api.execute([plan])
    report = api.check(plan.path, checkpoint)
    assert report.ok, as_text(report)
    assert [section.title for section in report.sections] == ["metadata", "tensors", "weights", "second opinion"]
    bad = Weights(plan.path, tmp_path / "bad.gguf")
    bad.swap("v.blk.0.attn_q.weight", "v.blk.0.attn_k.weight")
    assert "it holds v.blk.0.attn_q.weight" in api.check(bad.path, checkpoint, quick=True).failures[0].line
