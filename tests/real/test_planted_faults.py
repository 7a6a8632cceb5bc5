"""Faults planted in a vocabulary as large as Gemma's real one: known differences excuse none of them.

Once in the GGUF alone, and once in what `convert` makes of the checkpoint, so that both sides of the comparison of
metadata have the fault, and only the checkpoint's own tokenizer can tell.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import GGUFValueType

from borealis_gguf import InvalidInput, api
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert.architectures import gemma3, llama, qwen2
from borealis_gguf.convert.tokenizers.llama_tokenizer import PREFIX
from borealis_gguf.quality.report import as_text

from ..helpers.checkpoints import write_json
from ..helpers.gguf_faults import Edit, with_metadata
from .test_tokenizers import CHECKPOINTS

GGML = "tokenizer.ggml."
TOKENS, SCORES, MERGES = (GGML + name for name in ("tokens", "scores", "merges"))
Checkpoints = Callable[[str], tuple[Path, Path]]
"""A checkpoint by name, and a good GGUF of it."""


def exchange(key: str, a: int, b: int) -> Edit:
    """Two items of a list change places."""

    def edit(kv: dict[str, KV]) -> None:
        items = list(kv[key].value)
        items[a], items[b] = items[b], items[a]
        kv[key] = replace(kv[key], value=tuple(items))

    return edit


def added_pair(kv: dict[str, KV]) -> None:
    """Two of the 6415 added tokens that no line of the check holds: <unused40> and <unused41>."""
    tokens = kv[TOKENS].value
    exchange(TOKENS, tokens.index("<unused40>"), tokens.index("<unused41>"))(kv)


def one_score(kv: dict[str, KV]) -> None:
    """A rare piece gets the best score of all."""
    scores = list(kv[SCORES].value)
    scores[200_000] = 1.0
    kv[SCORES] = replace(kv[SCORES], value=tuple(scores))


def one_merge(kv: dict[str, KV]) -> None:
    merges = list(kv[MERGES].value)
    del merges[100_000]
    kv[MERGES] = replace(kv[MERGES], value=tuple(merges))


def no_prefix(kv: dict[str, KV]) -> None:
    """The normalizer's first step: a space in front of every text."""
    kv[PREFIX] = KV(PREFIX, GGUFValueType.BOOL, False)


FAULTS: dict[str, tuple[str, Edit, str]] = {
    "a swapped pair of added tokens": ("gemma3-json", added_pair, "token: expected '<unused40>'; found '<unused41>'"),
    "one wrong score": ("gemma3-json", one_score, "merges: scores rise at 1 places"),
    "a lost merge": ("qwen2_5", one_merge, "merges: 151386 merges, where tokenizer.json has 151387"),
    "a lost normalizer": ("llama2", no_prefix, r"\d+ of 54 texts become other tokens"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Each is made once."""
    folder, made = tmp_path_factory.mktemp("faults"), dict[str, tuple[Path, Path]]()

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            checkpoint = CHECKPOINTS[name]().write(folder)
            plan = api.plan_convert(checkpoint, folder)
            api.execute([plan], check=False)
            made[name] = checkpoint, plan.path
        return made[name]

    return get


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_gguf(fault: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    name, edit, pattern = FAULTS[fault]
    checkpoint, good = checkpoints(name)
    lines = failures(with_metadata(good, tmp_path / "bad.gguf", edit), checkpoint)
    assert any(re.search(pattern, line) for line in lines), lines
    assert any(line.startswith(GGML) for line in lines), lines  # metadata tells, too


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_converter(
    fault: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, edit, pattern = FAULTS[fault]
    checkpoint, _ = checkpoints(name)
    room, function = (gemma3, "tokenizer_kv") if name.startswith("gemma3") else (llama, "vocabulary_kv")
    if name.startswith("qwen"):
        room = qwen2
    right = getattr(room, function)

    def wrong(*args: object) -> tuple[KV, ...]:
        kv = {entry.key: entry for entry in right(*args)}
        edit(kv)
        return tuple(kv.values())

    monkeypatch.setattr(room, function, wrong)
    plan = api.plan_convert(checkpoint, tmp_path / "bad.gguf")
    api.execute([plan], check=False)
    lines = failures(plan.path, checkpoint)
    assert any(re.search(pattern, line) for line in lines), lines
    assert not any(line.startswith(GGML) for line in lines), lines


def failures(path: Path, checkpoint: Path) -> list[str]:
    return [finding.line for finding in api.check(path, checkpoint).failures]


def lose_a_merge(folder: Path) -> str:
    """Take the first merge that makes "▁hvordan" out of tokenizer.json; returns that piece."""
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    merges = value["model"]["merges"]
    lost = merges.pop(next(rank for rank, pair in enumerate(merges) if "".join(pair) == "▁hvordan"))
    write_json(file, value)
    return "".join(lost)


def test_a_merge_lost_from_tokenizer_json(tmp_path: Path) -> None:
    """Beside tokenizer.model only the whole check tells; alone it is no vocabulary that a GGUF could hold."""
    checkpoint = CHECKPOINTS["gemma3-model"]().write(tmp_path)
    piece = lose_a_merge(checkpoint)
    plan = api.plan_convert(checkpoint, tmp_path / "bad.gguf")
    api.execute([plan], check=False)
    report = api.check(plan.path, checkpoint)
    wanted = "merges: 1 pairs of pieces are no merges in tokenizer.json, and llama.cpp joins them"
    assert wanted in [finding.line for finding in report.failures], as_text(report)
    (checkpoint / "tokenizer.model").unlink()
    with pytest.raises(InvalidInput, match=re.escape(f"{piece!a} can be made of ")):
        api.plan_convert(checkpoint, tmp_path / "bad.gguf")
