"""Reads tokenizer.json."""

from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .file_access import quote
from .strict_json import MAX_TOKENIZER_JSON, read_json_object

SIDES = ("Left", "Right")
LENGTHS = {
    "padding": {"strategy": ("BatchLongest", "Fixed"), "direction": SIDES},
    "truncation": {"strategy": ("LongestFirst", "OnlyFirst", "OnlySecond"), "direction": SIDES},
}
"""Settings on which no id of a text depends; but tokenizers loads no file that has another value."""


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Reads tokenizer.json, and splits merges of the older form "a b" into ["a", "b"]."""
    document = read_json_object(path, limit=MAX_TOKENIZER_JSON)
    _check_lengths(path, document)
    model = document.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return document


def _check_lengths(path: Path, document: dict[str, Any]) -> None:
    """Raises InvalidInput for a `padding` or `truncation` that no tokenizer has."""
    for part, choices in LENGTHS.items():
        settings = document.get(part)
        if settings is not None and not isinstance(settings, dict):
            raise InvalidInput(f"{path}: {part} is {quote(str(settings))}; it must be null or an object")
        for name, allowed in choices.items():
            value = (settings or {}).get(name, allowed[0])
            chosen = next(iter(value), None) if isinstance(value, dict) else value  # {"Fixed": 512}
            if chosen not in allowed:
                raise InvalidInput(f"{path}: {part}.{name} is {quote(str(value))}; it must be {' or '.join(allowed)}")
