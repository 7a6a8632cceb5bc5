"""Reads the normalizer, pre-tokenizer and added-token flags of a SentencePiece-like tokenizer.json.

llama.cpp's SentencePiece tokenizer replaces spaces by ▁ and can prepend one. Every other step is listed as
unsupported; the tokenizer parity check measures which texts it changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.file_access import quote

SPACE = "▁"
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """`prefix`: a space is prepended. The other fields describe steps that llama.cpp lacks: of the `normalizer`, of the
    pre-tokenizer (`splits`), and around `added` tokens."""

    prefix: bool
    normalizer: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def unsupported(self) -> tuple[str, ...]:
        return self.normalizer + self.splits + self.added


def read_preprocessing(json: Mapping[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing of a parsed tokenizer.json, or None if it does not replace spaces by ▁."""
    spaces = prefix = False
    normalizer, splits = [], []
    for step in steps(json.get("normalizer"), "normalizers"):
        if step == SPACES:
            spaces = True
        elif step == {"type": "Prepend", "prepend": SPACE}:
            prefix = True
        else:
            normalizer.append(described(step))
    for step in steps(json.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement") == SPACE and not spaces:
            spaces = True
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = scheme != "never"
            if prefix:
                splits.append("no space before a text that begins with one")
            if scheme == "first":
                splits.append("no space after a control token")
            if step.get("split", True):
                splits.append("nothing joined across a space")
        # A split on spaces, as in Gemma's files, does nothing once spaces are replaced.
        elif not (spaces and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):
            splits.append(described(step))
    if not spaces:
        return None
    added = unsupported_added_tokens(json.get("added_tokens") or [])
    return Preprocessing(prefix, tuple(normalizer), tuple(splits), added)


def unsupported_added_tokens(added: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Describes the lstrip, rstrip and single_word flags of added tokens, which llama.cpp ignores."""
    tokens = list(added)
    stripping = [token["content"] for token in tokens if token.get("lstrip") or token.get("rstrip")]
    words = [token["content"] for token in tokens if token.get("single_word")]
    effects = ((stripping, "take the spaces around them"), (words, "only as whole words"))
    return tuple(f"{some_names(texts)} {effect}" for texts, effect in effects if texts)


def some_names(texts: Sequence[str]) -> str:
    """Quotes the first three texts."""
    return ", ".join(map(quote, texts[:3])) + (" …" if len(texts) > 3 else "")


def steps(part: Any, key: str) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or pre-tokenizer, with nested sequences flattened."""
    if part is None:
        return []
    if not isinstance(part, dict):
        return [{}]
    inner = part.get(key) if part.get("type") == "Sequence" else None
    return [step for item in inner for step in steps(item, key)] if isinstance(inner, list) else [part]


def described(step: Mapping[str, Any]) -> str:
    """Formats a step for messages: `Replace("\\n" → "\\n ")`, `Split(/.{1,24}/)`, `NFKC`."""
    kind, pattern = quote(str(step.get("type"))).strip("'"), step.get("pattern")
    if isinstance(pattern, dict):
        regex = quote(str(pattern.get("Regex"))).strip("'")
        text = quote(str(pattern["String"])) if "String" in pattern else f"/{regex}/"
        return f"{kind}({text}" + (f" → {quote(str(step['content']))})" if "content" in step else ")")
    return kind + next((f"({quote(str(step[key]))})" for key in ("prepend", "content") if key in step), "")
