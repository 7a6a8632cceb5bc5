"""Real tokenizers around small random weights: what is made of them has the checkpoint's token ids, or says why not."""

import json
import pydoc_data.topics
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from borealis_gguf import Report, api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.quality.report import as_text
from borealis_gguf.quality.text.sample_texts import LINES
from borealis_gguf.runtime.llama.vocabulary import open_vocabulary

from ..helpers.checkpoints import Miniature
from ..helpers.paths import DATA
from .checkpoints import N_GEMMA, gemma, llama, tokenizer_files, with_tokenizer_model
from .material import real

BARS = "▁"
PLAIN_EOS = "'</s>' as ordinary text: llama.cpp takes a token of such a name for a control token"

CHECKPOINTS: dict[str, Callable[[], Miniature]] = {
    "gemma3-json": lambda: gemma("gemma3-json", N_GEMMA, tokenizer_files("gemma3")),
    "gemma3-model": lambda: gemma("gemma3-model", N_GEMMA, with_tokenizer_model),
    "gemma3-json-262208": lambda: gemma("gemma3-json-262208", N_GEMMA + 64, tokenizer_files("gemma3")),
    "gemma3-model-262208": lambda: gemma("gemma3-model-262208", N_GEMMA + 64, with_tokenizer_model),
    "llama2": lambda: llama("llama2", 32000, "llama2", architectures=["LlamaForCausalLM"], model_type="llama"),
    "llama3": lambda: llama("llama3", 128256, "llama3", architectures=["LlamaForCausalLM"], model_type="llama"),
    "mistral_nemo": lambda: llama(
        "mistral_nemo", 131072, "mistral_nemo", architectures=["MistralForCausalLM"], model_type="mistral"
    ),
    "qwen2_5": lambda: llama(
        "qwen2_5", 151936, "qwen2_5", architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=True
    ),
}
GEMMA = [name for name in CHECKPOINTS if name.startswith("gemma3")]
BAR = "the character ▁ (U+2581) in a text, which is read as a space"
UNSUPPORTED = {
    **dict.fromkeys(GEMMA, BAR),
    **dict.fromkeys(GEMMA[:2], f"{BAR}; placeholders for images, for which this model has no embedding row"),
    "mistral_nemo": "upper-case words with letters outside A to Z are cut, as 'ØL' into 'Ø' and 'L'",
    "qwen2_5": f"NFC; {PLAIN_EOS}",
}
"""What no GGUF of a tokenizer can express; empty for the others: there every id agrees."""


def more_lines(tokenizer: Path) -> list[str]:
    """3000 lines beside those of tests/data: English prose and code, pieces of the vocabulary one after another, and
    characters of every kind, by chance that is the same each time."""
    chance = random.Random(3)
    prose = [line for topic in pydoc_data.topics.topics.values() for line in topic.split("\n") if line.strip()]
    vocabulary = sorted(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"])
    kinds = ["abcdefghijklmnopqrstuvwxyzæøå", "ABCÆØÅ", "0123456789", " .,;:!?-–«»\"'()[]{}<>/\\", "áčđŋšŧž ğñçß"]
    kinds += [
        "".join(map(chr, range(0x400, 0x460))),
        "日本語漢字かなカナ한국어",
        "😀👍🏽👩‍👧🇳🇴",
        "\u0301\u030a½²№ﬁ\u00a0\u200b",
    ]
    lines = chance.sample(prose, 1200)
    lines += ["".join(chance.choices(vocabulary, k=8)).replace(BARS, " ") for _ in range(900)]
    lines += ["".join(chance.choice(chance.choice(kinds)) for _ in range(40)) for _ in range(900)]
    return [line for line in lines if "\n" not in line and "\r" not in line and "\0" not in line]


def our_lines() -> list[str]:
    files = sorted(path for path in DATA.rglob("*") if path.suffix in (".txt", ".json", ".md"))
    return [line for path in files for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_whole_life(name: str, tmp_path: Path) -> None:
    """convert and quantize with the quick check, then the whole check on thousands of lines; ids compared here, too."""
    checkpoint = CHECKPOINTS[name]().write(tmp_path)
    reports: list[Report] = []
    converted = api.plan_convert(checkpoint, tmp_path)
    api.execute([converted], on_report=reports.append)
    quantized = api.plan_quantize(checkpoint, ["Q8_0", "Q4_0"], tmp_path)
    api.execute(quantized, on_report=reports.append)
    reports.append(api.check(quantized[1].path, checkpoint))
    assert [report.ok for report in reports] == [True] * 4, as_text(reports[-1])
    lines = [*our_lines(), *more_lines(checkpoint / "tokenizer.json")]
    assert len(lines) > 3000
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    report = api.check(converted.path, checkpoint, text=tmp_path / "lines.txt")
    assert report.ok, as_text(report)
    differing = count_differences(converted.path, checkpoint / "tokenizer.json", [*LINES, *lines])
    (section,) = [section for section in report.sections if section.title == "token ids"]
    told = [finding.what for finding in section.findings if finding.status == "note"]
    total = len(LINES) + len(lines)
    wanted = f"{differing} of {total} texts become other tokens; a GGUF cannot express {UNSUPPORTED.get(name)}"
    assert told[:1] == ([wanted] if name in UNSUPPORTED else [])
    assert differing == 0 if name not in UNSUPPORTED else 0 < differing < total / 5


def count_differences(gguf: Path, tokenizer: Path, lines: list[str]) -> int:
    """How many lines get other ids in llama.cpp than in the `tokenizers` library, asked directly."""
    theirs, vocabulary = Tokenizer.from_file(str(tokenizer)), open_vocabulary(gguf)
    try:
        wanted = [encoding.ids for encoding in theirs.encode_batch(lines, add_special_tokens=False)]
        return sum(vocabulary.tokenize(line, special=True) != ids for line, ids in zip(lines, wanted, strict=True))
    finally:
        vocabulary.close()


def test_both_ways_to_gemmas_vocabulary_give_the_same(tmp_path: Path) -> None:
    """tokenizer.json alone gives the texts and types of tokenizer.model, and scores in the same order."""
    kv = []
    for name in ("gemma3-json", "gemma3-model"):
        plan = api.plan_convert(CHECKPOINTS[name]().write(tmp_path), tmp_path)
        kv.append({entry.key.removeprefix("tokenizer.ggml."): entry.value for entry in plan.model.kv})
    assert kv[0]["tokens"] == kv[1]["tokens"] and kv[0]["token_type"] == kv[1]["token_type"]
    made = json.loads((real("gemma3") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    added = {token["content"] for token in json.loads((real("gemma3") / "tokenizer.json").read_bytes())["added_tokens"]}
    pieces = [piece for piece in dict.fromkeys("".join(merge) for merge in made["merges"]) if piece not in added]
    for entries in kv:
        scores = [entries["scores"][made["vocab"][piece]] for piece in pieces]
        assert scores == sorted(scores, reverse=True)
    published = read_gguf(real("gemma3-270m") / "gemma-3-270m-Q4_K_M.gguf")
    assert kv[0]["tokens"] == published.value("tokenizer.ggml.tokens")


@pytest.mark.parametrize("name", ["gemma3", "llama2", "llama3", "mistral_nemo", "qwen2_5"])
def test_saved_again_by_transformers(name: str, tmp_path: Path) -> None:
    """A tokenizer that went through transformers gives the same tokens and ids."""
    key = "gemma3-json" if name == "gemma3" else name
    first = CHECKPOINTS[key]().write(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    for path in first.iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (again / file).unlink()
    AutoTokenizer.from_pretrained(first).save_pretrained(again)
    plans = [api.plan_convert(folder, tmp_path / f"{folder.name}.gguf") for folder in (first, again)]
    api.execute(plans)
    for key in ("tokens", "token_type", "scores", "merges", "pre", "model"):
        values = [read_gguf(plan.path).value(f"tokenizer.ggml.{key}") for plan in plans]
        assert values[0] == values[1], key
    report = api.check(plans[1].path, again)
    assert report.ok, as_text(report)
