"""The quick check asks less than the whole tokenizer, and early: its answers are those of the whole one."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGUFValueType
from tokenizers import Tokenizer

from borealis_gguf import BorealisError, InvalidInput, Report, api, execute, plan_quantize, quick_check
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.tokenizer_file import in_parts
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import Model
from borealis_gguf.quality import asked, words
from borealis_gguf.quality.check import QuickCheck
from borealis_gguf.quality.cut import cut_tokenizer
from borealis_gguf.quality.cut_vocabulary import Cut, cut_vocabulary
from borealis_gguf.quality.report import as_text
from borealis_gguf.quality.texts import LINES
from borealis_gguf.quality.words import TURN_ENDS, TURN_STARTS
from borealis_gguf.quality.worker import LATER

from .conftest import NANO
from .families import FAMILIES, NORA, NORA_NORMALIZER, bpe_json
from .faults import set_value, with_metadata
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


@pytest.fixture(params=[None, *FAMILIES], ids=lambda family: family.name if family else "nano")
def vocabulary(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A GGUF with another kind of tokenizer each: with and without a space in front, SentencePiece and byte-level."""
    folder = request.param.write(tmp_path) if request.param else NANO
    plan = api.plan_convert(folder, tmp_path / "hel.gguf")
    api.execute([plan], check=False)
    return plan.path


def test_llama_cpp_says_the_same_of_a_cut_vocabulary(vocabulary: Path, tmp_path: Path) -> None:
    header, few = read_gguf(vocabulary), tmp_path / "få.gguf"
    tokens = header.value("tokenizer.ggml.tokens")
    marks = [token for token in tokens if token in (*TURN_STARTS, *TURN_ENDS, "</s>", "<s>", "<unk>")]
    chats = [f"{a}Hei  på deg{b} {a}{a}å{b}\n" for a in marks for b in marks]
    ask = [tokens.index(token) for token in marks] + [len(tokens) // 2]
    texts = [*LINES, *NORWEGIAN, *chats]
    whole = answer({"gguf": str(vocabulary), "texts": texts, "ask": ask})
    for some in (texts, texts[:2], texts[-1:], []):
        cut = cut_vocabulary(header.kv, some, ask)
        assert cut is not None and len(cut.ids) < len(tokens)
        few.write_bytes(lay_out(few, Model(tuple(cut.entries), ()), ()).header)
        request = {"gguf": str(vocabulary), "texts": some, "ask": ask, "vocabulary": str(few), "ids": cut.ids}
        told = {key: dict(zip(texts, whole[key], strict=True)) for key in ("ids", "back")}
        wanted = {**whole, **{key: [by_text[text] for text in some] for key, by_text in told.items()}}
        assert answer(request) == wanted


def answer(request: dict[str, Any]) -> dict[str, Any]:
    question = asked.Asked(request, "asking")
    try:
        return question.answer()
    finally:
        question.close()


def test_a_vocabulary_of_another_kind_is_left_whole(nano_q8: Path) -> None:
    kv = read_gguf(nano_q8).kv
    string, array, number = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.INT32
    for entry in (
        KV("tokenizer.ggml.model", string, "t5"),
        KV("tokenizer.ggml.scores", array, (0.5, 0.5), GGUFValueType.FLOAT32),
        KV("tokenizer.ggml.precompiled_charsmap", array, (1, 2), number),
        KV("tokenizer.ggml.tokens", array, (), string),
    ):
        assert cut_vocabulary([*(other for other in kv if other.key != entry.key), entry], LINES, []) is None


def test_the_header_of_the_file_itself_is_read_by_ggml(nano_q8: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "ødelagt.gguf"
    damaged.write_bytes(nano_q8.read_bytes()[:1000])
    request = {"gguf": str(damaged), "texts": ["hei"], "ask": [], "vocabulary": str(nano_q8), "ids": list(range(9))}
    with pytest.raises(
        BorealisError, match=r"ødelagt.gguf: ggml cannot read its header: .*exceeds remaining file size"
    ):
        answer(request)


def test_the_whole_vocabulary_has_the_last_word(
    nano: Path, nano_q8: Path, tmp_path: Path, children: list[asked.Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a cut one says too little, or there is a fault; and what was written for it does not stay."""
    folders: list[str] = []

    class Watched(tempfile.TemporaryDirectory[str]):
        def __enter__(self) -> str:
            folders.append(super().__enter__())
            return folders[-1]

    monkeypatch.setattr(words, "TemporaryDirectory", Watched)
    assert api.check(nano_q8, nano, quick=True).ok and len(children) == 2
    bad = with_metadata(nano_q8, tmp_path / "bad.gguf", set_value("tokenizer.ggml.eos_token_id", 6))
    assert "eos: expected 1 '<eos>'; found 6" in as_text(api.check(bad, nano, quick=True))
    assert len(children) == 2 + 4

    def too_few(entries: Sequence[KV], texts: Sequence[str], keep: Collection[int]) -> Cut | None:
        return cut_vocabulary(entries, [text[:1] for text in texts], keep)

    monkeypatch.setattr(words, "cut_vocabulary", too_few)
    assert api.check(nano_q8, nano, quick=True).ok and len(children) == 2 + 4 + 4
    monkeypatch.setattr(Watched, "__enter__", lambda self: str(tmp_path / "fullt"))
    assert api.check(nano_q8, nano, quick=True).ok and len(children) == 2 + 4 + 4 + 2  # the whole, at once
    assert len(folders) == 3 and not any(Path(folder).exists() for folder in folders)


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
