"""Finds the pre-tokenizer of llama.cpp that splits texts like a byte-level tokenizer.json.

llama.cpp's converter recognizes a vocabulary by a hash of token ids, so every new one is unknown to it. Here the
pre-tokenizer is recognized by the regular expressions in tokenizer.json, of which few exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInput
from .preprocessing import described, steps

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

GPT2 = "ByteLevel's own"
DIGITS = "each digit alone"
LLAMA3 = CONTRACTIONS + WORD + r"|\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + WORD + r"|\p{N}" + REST


def _cased(upper: str, lower: str, end: str, digits: str) -> str:
    """Builds the expression for words with upper-case letters first, then lower-case letters."""
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{end}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{end}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


TEKKEN = _cased(UPPER, LOWER, "", r"\p{N}")
GPT4O = _cased(UPPER, LOWER, f"{CONTRACTIONS}?", r"\p{N}{1,3}")
ROUGH_UPPER, ROUGH_LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
ROUGH_TEKKEN = _cased(ROUGH_UPPER, ROUGH_LOWER, "", r"\p{N}")
ROUGH_GPT4O = _cased(ROUGH_UPPER, ROUGH_LOWER, f"{CONTRACTIONS}?", r"\p{N}{1,3}")
"""llama.cpp's splits know the case of A to Z only: every other letter counts as both upper and lower case."""

BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass(frozen=True, slots=True)
class PreType:
    """A pre type of llama.cpp: its name, its splits in order, and the settings it implies.

    `ignore_merges`: a word that is a token is taken whole. `adds_bos`: a BOS is added unless a key disables it.
    `cleans`: detokenizing removes spaces before punctuation. `inexact` describes how llama.cpp's splits differ from the
    regular expression, and `actual` is the expression that llama.cpp implements.
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    cleans: bool = False
    inexact: str = ""
    actual: str = ""


SPACE_IN_FRONT = "ByteLevel's space in front"
CASES = "upper-case words with letters outside A to Z are cut, as 'ØL' into 'Ø' and 'L'"
PRE_TYPES = (
    PreType("gpt-2", (GPT2,), cleans=True),
    PreType("trillion", (GPT2,)),
    PreType("smollm", (DIGITS, GPT2)),
    PreType("starcoder", (DIGITS, GPT2), cleans=True),
    PreType("llama-bpe", (LLAMA3,), ignore_merges=True, adds_bos=True, cleans=True),
    PreType("dbrx", (LLAMA3,), cleans=True),
    PreType("qwen2", (QWEN2,)),
    PreType("stablelm2", (QWEN2,), cleans=True),
    PreType("tekken", (TEKKEN,), ignore_merges=True, adds_bos=True, inexact=CASES, actual=ROUGH_TEKKEN),
    PreType("gpt-4o", (GPT4O,), inexact=CASES, actual=ROUGH_GPT4O),
    PreType("bloom", (BLOOM,), cleans=True),
    PreType("poro-chat", (BLOOM,)),
    PreType("viking", (BLOOM, DIGITS)),
)
"""The first match is taken, unless the checkpoint sets clean_up_tokenization_spaces."""


@dataclass(frozen=True, slots=True)
class Match:
    """A pre type, and the tokenizer's steps that it does not perform: of the normalizer, and others."""

    type: PreType
    normalizer: tuple[dict[str, Any], ...]
    others: tuple[str, ...]

    @property
    def unsupported(self) -> tuple[str, ...]:
        return (*map(described, self.normalizer), *self.others)


def match_pre_type(where: str, json: Mapping[str, Any], cleans: bool | None) -> Match:
    """Returns the pre type of a parsed tokenizer.json. `cleans` is clean_up_tokenization_spaces.

    Raises InvalidInput if no pre type splits words in this way.
    """
    normalizer = steps(json.get("normalizer"), "normalizers")
    splits, others = _splits(steps(json.get("pre_tokenizer"), "pretokenizers"))
    ignore_merges = bool(json["model"].get("ignore_merges"))
    matching = [type for type in PRE_TYPES if type.splits == splits]
    if not matching:
        split = " + ".join(described(step) for step in steps(json.get("pre_tokenizer"), "pretokenizers")) or "nothing"
        raise InvalidInput(
            f"{where}: it splits words by {split}, as no pre-tokenizer of llama.cpp does; every GGUF of it would be "
            f"silently wrong (known: {', '.join(type.name for type in PRE_TYPES)})"
        )
    best = min(matching, key=lambda t: (t.ignore_merges != ignore_merges, cleans is not None and t.cleans != cleans))
    if best.ignore_merges != ignore_merges:
        others.append(f"ignore_merges is {str(ignore_merges).lower()}")
    if best.inexact:
        others.append(best.inexact)
    return Match(best, tuple(normalizer), tuple(others))


def _splits(pre_tokenizer: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the splits as spelled in PRE_TYPES, and descriptions of the steps that no pre type has."""
    splits: list[str] = []
    for i, step in enumerate(pre_tokenizer):
        if step.get("type") == "ByteLevel":
            if step.get("use_regex", True):
                splits.append(GPT2)
            before = "of every word" if i else ""
            others = [f"{SPACE_IN_FRONT} {before}".strip()] if step.get("add_prefix_space", True) else []
            return tuple(splits), others + [described(later) for later in pre_tokenizer[i + 1 :]]
        splits.append(_split(step))
    return ("no ByteLevel",), []


def _split(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return DIGITS
    if step.get("type") != "Split" or not isinstance(pattern, dict):
        return described(step)
    # llama.cpp keeps matches and the text between them (Isolated), which equals Removed + invert if all text matches.
    if (step.get("behavior"), bool(step.get("invert"))) not in (("Isolated", False), ("Removed", True)):
        return described(step)
    regex = str(pattern.get("Regex"))
    if step.get("invert") and regex in (BLOOM, r"\p{N}"):  # these expressions do not match all text
        return described(step)
    return DIGITS if regex == r"\p{N}" else regex
