"""Reads tokenizer.json."""

from pathlib import Path
from typing import Any

from .strict_json import MAX_TOKENIZER_JSON, read_json_object


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Reads tokenizer.json, and splits merges of the older form "a b" into ["a", "b"]."""
    document = read_json_object(path, limit=MAX_TOKENIZER_JSON)
    model = document.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return document
