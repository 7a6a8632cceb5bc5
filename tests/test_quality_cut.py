"""The quick check asks less than the whole tokenizer, and early: its answers are those of the whole one."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from borealis_gguf import InvalidInput, Report, api, execute, plan_quantize, quick_check
from borealis_gguf.checkpoint.tokenizer_file import in_parts
from borealis_gguf.quality import asked
from borealis_gguf.quality.check import QuickCheck
from borealis_gguf.quality.cut import cut_tokenizer
from borealis_gguf.quality.texts import LINES
from borealis_gguf.quality.worker import LATER

from .conftest import NANO
from .families import NORA, NORA_NORMALIZER, bpe_json
from .test_bpe import STRUCTURES

NORWEGIAN = (Path(__file__).parent / "data" / "norwegian.txt").read_text(encoding="utf-8").split("\n")


def whole(name: str) -> dict[str, Any]:
    if name == "nano":
        return json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    if name == "nora":
        return bpe_json(NORA, NORA_NORMALIZER, ignore_merges=True)
    pre_tokenizer, ignore_merges, _ = STRUCTURES[name]
    return bpe_json(pre_tokenizer, None, ignore_merges)


def ids(document: str, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in Tokenizer.from_str(document).encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("name", ["nano", "nora", *STRUCTURES])
@pytest.mark.parametrize("merges", ["lists", "strings"])
def test_ids_are_those_of_the_whole_tokenizer(name: str, merges: str) -> None:
    document = whole(name)
    if merges == "strings":
        pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in document["model"]["merges"]]
        assert not any(" " in side for pair in pairs for side in pair)
        document["model"]["merges"] = [" ".join(pair) for pair in pairs]
    texts = [*LINES, *NORWEGIAN, "<start_of_turn>user\nHei!<end_of_turn>\n", "<s> hei</s>"]
    for some in (texts, texts[:3], texts[-2:]):
        made = cut_tokenizer(in_parts(json.dumps(document, ensure_ascii=name == "nora").encode()), some)
        assert made is not None
        assert len(json.loads(made)["model"]["vocab"]) < len(document["model"]["vocab"])
        assert ids(made, some) == ids(json.dumps(document), some)


def test_what_cannot_be_cut_is_left_whole() -> None:
    document = whole("nano")
    for model in ({"type": "WordPiece"}, {"end_of_word_suffix": "</w>"}):
        changed = {**document, "model": {**document["model"], **model}}
        assert cut_tokenizer(in_parts(json.dumps(changed).encode()), LINES) is None


def ready(check: QuickCheck) -> None:
    """Wait until what it starts ahead has been started."""
    check._pool.submit(int).result()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[asked.Child]:
    """All that are started, in order; nothing is known before."""
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    started: list[asked.Child] = []

    class Counted(asked.Child):
        def __init__(self, *ahead: str) -> None:
            super().__init__(*ahead)
            started.append(self)

    monkeypatch.setattr(asked, "Child", Counted)
    monkeypatch.setattr("borealis_gguf.quality.check.Child", Counted)
    return started


def test_children_that_were_begun_are_those_that_answer(
    nano: Path, tmp_path: Path, children: list[asked.Child]
) -> None:
    reports: list[Report] = []
    with quick_check(nano, on_report=reports.append) as check:
        plans = plan_quantize(nano, ["Q8_0", "Q4_K_M"], tmp_path)
        ready(check)
        assert len(children) == 2 and all(child.process.poll() is None for child in children)
        execute(plans, check=check)
    assert [report.ok for report in reports] == [True, True]
    assert len(children) == 2 and [child.process.returncode for child in children] == [0, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no process's priority without a handle")
def test_children_stand_back(nano: Path, children: list[asked.Child]) -> None:
    with quick_check(nano) as check:
        ready(check)
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        until = time.monotonic() + 20
        while any(os.getpriority(os.PRIO_PROCESS, c.process.pid) != min(ours + LATER, 19) for c in children):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert len(children) == 2


def test_a_folder_by_any_of_its_names_is_asked_once(
    nano: Path, tmp_path: Path, children: list[asked.Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nano.parent)
    for source in (nano.name, f"{nano.parent}/../{nano.parent.name}/{nano.name}"):
        monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / source.replace("/", "-")))
        with quick_check(source) as check:
            execute(plan_quantize(source, ["Q8_0"], tmp_path), check=check)
    assert len(children) == 4


def test_nobody_outlives_a_plan_that_fails(nano: Path, tmp_path: Path, children: list[asked.Child]) -> None:
    with pytest.raises(InvalidInput, match="no preset"), quick_check(nano) as check:
        ready(check)
        plan_quantize(nano, ["Q4_K_XXL"], tmp_path)
    assert len(children) == 2 and all(child.process.poll() is not None for child in children)


def test_what_is_no_checkpoint_is_passed_over(nano_bf16: Path, tmp_path: Path, children: list[asked.Child]) -> None:
    for source in (nano_bf16, tmp_path, "NbAiLab/borealis-4b", tmp_path / "blåbær"):
        with quick_check(source) as check:
            ready(check)
    assert not children


def test_what_cannot_be_read_early_is_told_in_its_time(nano: Path, tmp_path: Path, children: list[asked.Child]) -> None:
    folder = tmp_path / "ødelagt"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InvalidInput, match="JSON nested too deeply"), quick_check(folder) as check:
        api.execute(api.plan_quantize(folder, ["Q8_0"], tmp_path), check=check)
    assert len(children) == 2
