"""A checkpoint's tokenizer without what no GGUF can say: what llama.cpp makes of the same vocabulary.

What it gives other ids than the whole tokenizer is what a converted model cannot be blamed for; all else it can.
"""

from collections.abc import Mapping
from typing import Any

from ..convert.pre_type import SPACE_IN_FRONT, Match, match_pre_type
from ..convert.template_spaces import emulated_steps
from ..convert.text_view import SPACE, SPACES, described, steps, text_view


def bare(json: Mapping[str, Any], *, chat: bool = False) -> dict[str, Any]:
    """A parsed tokenizer.json, changed. `chat` leaves in it what a chat template does in its place."""
    view = text_view(json)
    if view:
        prefix = [{"type": "Prepend", "prepend": SPACE}] * view.prefix
        return {**json, "normalizer": _sequence("normalizers", [*prefix, SPACES]), "pre_tokenizer": None}
    match = match_pre_type("tokenizer.json", json, None)
    done = {step.name for step in emulated_steps(match)} if chat else set[str]()
    greedy = {"lstrip": False, "rstrip": False, "single_word": False}
    return {
        **json,
        "normalizer": _sequence("normalizers", [step for step in match.normalizer if described(step) in done]),
        "pre_tokenizer": _sequence("pretokenizers", _splits(json, match, SPACE_IN_FRONT in done)),
        "added_tokens": [{**token, **greedy} for token in json.get("added_tokens") or []],
        "model": {**json["model"], "ignore_merges": match.type.ignore_merges},
    }


def _splits(json: Mapping[str, Any], match: Match, space: bool) -> list[dict[str, Any]]:
    """The steps up to ByteLevel, which puts a `space` in front or not; regular expressions are llama.cpp's."""
    kept = []
    for step in steps(json.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "ByteLevel":
            return [*kept, {**step, "add_prefix_space": space}]
        rough = {"pattern": {"Regex": match.type.actual}} if match.type.actual else {}
        kept.append({**step, **rough})
    return kept


def _sequence(key: str, inner: list[Any]) -> dict[str, Any] | None:
    return {"type": "Sequence", key: inner} if inner else None
