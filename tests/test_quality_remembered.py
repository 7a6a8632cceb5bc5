"""The quick check asks the same question of the same bytes once; whatever differs is asked anew."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import Report, api
from borealis_gguf.quality import asked, remembered
from borealis_gguf.quality.report import as_text

from .faults import set_value, with_metadata

TEXTUAL = ("token ids", "special tokens", "chat template")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What children were asked about, in order."""
    kinds: list[str] = []

    class Counted(asked.Asked):
        def __init__(self, request: dict[str, Any], what: str, key: str = "", child: asked.Child | None = None) -> None:
            super().__init__(request, what, key, child)
            kinds.extend(["gguf" if "gguf" in request else "tokenizer"] if self._process else [])

    for module in ("words", "theirs"):
        monkeypatch.setattr(f"borealis_gguf.quality.{module}.Asked", Counted)
    return kinds


def quick(path: Path, nano: Path) -> Report:
    return api.check(path, nano, quick=True)


def test_a_second_check_starts_no_child_and_says_the_same(nano: Path, nano_q4: Path, started: list[str]) -> None:
    first, second = quick(nano_q4, nano), quick(nano_q4, nano)
    assert started == ["tokenizer", "gguf"]
    assert first.ok and second.sections == first.sections
    api.check(nano_q4, nano)
    assert started == ["tokenizer", "gguf"] * 2  # the whole check takes nobody's word


def test_another_preset_of_the_same_vocabulary_is_no_new_question(
    nano: Path, nano_q4: Path, nano_q8: Path, started: list[str]
) -> None:
    assert quick(nano_q4, nano).ok and quick(nano_q8, nano).ok
    assert started == ["tokenizer", "gguf"]


def test_a_changed_vocabulary_or_tokenizer_is_a_new_question(
    tmp_path: Path, nano: Path, nano_q8: Path, started: list[str]
) -> None:
    assert quick(nano_q8, nano).ok
    bad = with_metadata(nano_q8, tmp_path / "bad.gguf", set_value("tokenizer.ggml.eos_token_id", 6))
    report = quick(bad, nano)
    assert "eos: expected 1 '<eos>'; found 6" in as_text(report)
    assert started == ["tokenizer", "gguf", "gguf", "tokenizer"]  # before anything is called wrong, the whole one
    del started[:]
    other = shutil.copytree(nano, tmp_path / "other")
    path = other / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["model"]["merges"] = whole["model"]["merges"][:100]
    path.write_text(json.dumps(whole), encoding="utf-8")
    report = quick(nano_q8, other)
    assert "texts become other tokens" in as_text(report)
    assert started == ["tokenizer", "tokenizer"]


def test_a_new_version_of_the_code_is_asked_anew(
    nano: Path, nano_q8: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick(nano_q8, nano).ok
    monkeypatch.setattr(remembered, "OWN_CODE", (*remembered.OWN_CODE, Path(__file__)))
    assert quick(nano_q8, nano).ok
    assert started == ["tokenizer", "gguf"] * 2


def test_a_damaged_answer_is_asked_anew(tmp_path: Path, nano: Path, nano_q8: Path, started: list[str]) -> None:
    first = quick(nano_q8, nano)
    kept = sorted((tmp_path / "cache" / "answers").iterdir())
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text(encoding="ascii").replace("1", "2"), encoding="ascii")
    kept[1].write_bytes(b"")
    assert quick(nano_q8, nano).sections == first.sections
    assert started == ["tokenizer", "gguf"] * 2


def test_a_child_that_died_leaves_no_answer(
    tmp_path: Path, nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "WORKER", "borealis_gguf.no_such_module")
    assert not quick(nano_q8, nano).ok
    monkeypatch.undo()
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    assert not (tmp_path / "cache" / "answers").exists()
    assert quick(nano_q8, nano).ok


def test_few_answers_are_kept_and_a_folder_that_cannot_be_written_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(remembered.KEPT + 3):
        remembered.keep(f"{n:040}", {"n": n})
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == remembered.KEPT
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "file"))
    remembered.keep("a", {"n": 1})
    assert remembered.recall("a") is None


def test_files_get_their_names_without_a_child_when_all_is_known(
    tmp_path: Path, nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.execute(api.plan_quantize(nano, ["Q8_0"], tmp_path / "first.gguf"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    reports: list[Report] = []
    api.execute(api.plan_quantize(nano, ["Q4_K_M"], tmp_path / "second.gguf"), on_report=reports.append)
    assert [report.ok for report in reports] == [True]
    assert {section.title for section in reports[0].sections} >= set(TEXTUAL)
