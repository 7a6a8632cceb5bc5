"""The representable part of a tokenizer: a tokenizer.json without what a GGUF cannot express.

llama.cpp should give every text the ids of the representable part. Where these are not those of the whole tokenizer, no
converter could do better; any other difference is a fault of the GGUF.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...convert.metadata.template_whitespace import emulated_steps
from ...convert.tokenizers.added_tokens import looks_special
from ...convert.tokenizers.embedding_rows import PLACEHOLDERS
from ...convert.tokenizers.pre_tokenizer import SPACE_IN_FRONT, Match, match_pre_type
from ...convert.tokenizers.preprocessing import SPACE, SPACES, described, read_preprocessing, some_names, steps

LITERAL_SPACE = f"the character {SPACE} (U+2581) in a text, which is read as a space"


def representable(json: Mapping[str, Any], *, chat: bool = False, control: Sequence[str] = ()) -> dict[str, Any]:
    """Reduce a parsed tokenizer.json. `chat` keeps the steps that the GGUF's chat template does instead.

    `control` are ordinary tokens that llama.cpp treats as control tokens because of their names.
    """
    json = _with_control(_with_plain_spaces(json), control)
    greedy = {"lstrip": False, "rstrip": False, "single_word": False}
    json = {**json, "added_tokens": [{**token, **greedy} for token in json.get("added_tokens") or []]}
    view = read_preprocessing(json)
    if view:
        prefix = [{"type": "Prepend", "prepend": SPACE}] * view.prefix
        return {**json, "normalizer": _sequence("normalizers", [*prefix, SPACES]), "pre_tokenizer": None}
    match = match_pre_type("tokenizer.json", json, None)
    done = {step.name for step in emulated_steps(match)} if chat else set[str]()
    return {
        **json,
        "normalizer": _sequence("normalizers", [step for step in match.normalizer if described(step) in done]),
        "pre_tokenizer": _sequence("pretokenizers", _splits(json, match, SPACE_IN_FRONT in done)),
        "model": {**json["model"], "ignore_merges": match.type.ignore_merges},
    }


def without_rowless_tokens(json: Mapping[str, Any], n_vocab: int) -> dict[str, Any]:
    """A parsed tokenizer.json without the placeholders past a vocabulary of `n_vocab`: in the GGUF they are text."""
    added = json.get("added_tokens") or []
    return {**json, "added_tokens": [t for t in added if t["id"] < n_vocab or t["content"] not in PLACEHOLDERS]}


def not_representable(
    json: Mapping[str, Any], unsupported: Iterable[str], control: Sequence[str] = (), *, in_spaces: bool = False
) -> list[str]:
    """Describes what `representable` leaves out. `unsupported` describes the steps that llama.cpp does not do.
    `in_spaces`: texts without a literal ▁ get other ids, too."""
    described = list(unsupported)
    if tokens := list(_space_tokens(json)):
        joined = f"added tokens that hold {SPACE} ({some_names(tokens)}), which llama.cpp looks for as spaces"
        described.append(joined if in_spaces else LITERAL_SPACE)
    if ordinary := _ordinary(json, control):
        what = "as ordinary text: llama.cpp takes a token of such a name for a control token"
        described.append(f"{some_names(ordinary)} {what}")
    return described


def _space_tokens(json: Mapping[str, Any]) -> dict[str, str]:
    """Added tokens of a SentencePiece vocabulary that hold ▁, and how a GGUF stores them: with real spaces.

    llama.cpp looks for them in the text before it replaces spaces, so a literal ▁ no longer matches.
    """
    if read_preprocessing(json) is None:
        return {}
    texts = [t["content"] for t in json.get("added_tokens") or [] if not (t.get("special"))]
    return {text: text.replace(SPACE, " ") for text in texts if SPACE in text and not looks_special(text)}


def _with_plain_spaces(json: Mapping[str, Any]) -> Mapping[str, Any]:
    """The vocabulary as a GGUF stores it, without the merges that make tokens of `_space_tokens`."""
    stored = _space_tokens(json)
    if not stored:
        return json
    model = json["model"]
    vocabulary = {stored.get(piece, piece): id for piece, id in model["vocab"].items()}
    merges = [m for m in model["merges"] if not (m[0] in stored or m[1] in stored or m[0] + m[1] in stored)]
    added = [{**token, "content": stored.get(token["content"], token["content"])} for token in json["added_tokens"]]
    return {**json, "added_tokens": added, "model": {**model, "vocab": vocabulary, "merges": merges}}


def _ordinary(json: Mapping[str, Any], control: Sequence[str]) -> list[str]:
    """The names in `control` that are ordinary pieces: added tokens are searched for in a text anyway."""
    added = {token["content"] for token in json.get("added_tokens") or []}
    return [text for text in control if text in json["model"]["vocab"] and text not in added]


def _with_control(json: Mapping[str, Any], control: Sequence[str]) -> Mapping[str, Any]:
    """Ordinary pieces that llama.cpp takes for control tokens, as added tokens."""
    vocabulary = json["model"]["vocab"]
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    more = [{"id": vocabulary[text], "content": text, **flags} for text in _ordinary(json, control)]
    return {**json, "added_tokens": [*(json.get("added_tokens") or []), *more]} if more else json


def _splits(json: Mapping[str, Any], match: Match, space: bool) -> list[dict[str, Any]]:
    """The pre-tokenizer's steps up to ByteLevel (which puts a `space` in front, or not), with the regular expressions
    that llama.cpp really uses."""
    kept = []
    for step in steps(json.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "ByteLevel":
            return [*kept, {**step, "add_prefix_space": space}]
        pattern = {"pattern": {"Regex": match.type.actual}} if match.type.actual else {}
        kept.append({**step, **pattern})
    return kept


def _sequence(key: str, inner: list[Any]) -> dict[str, Any] | None:
    return {"type": "Sequence", key: inner} if inner else None
