"""Where notes about this machine are kept, and how: small JSON files, each of which may vanish at any time."""

import json
import os
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from .atomic_file import write_file
from .errors import BorealisError


def cache_dir() -> Path:
    """BOREALIS_GGUF_CACHE, else the platform's folder for things that may be deleted at any time."""
    chosen = os.environ.get("BOREALIS_GGUF_CACHE")
    return Path(chosen) if chosen else user_cache_path("borealis-gguf", appauthor=False, opinion=False)


def read_note(folder: str, name: str) -> dict[str, Any]:
    """The note `name` of a folder in the cache; empty if there is none, or none that can be read."""
    try:
        note = json.loads(_note(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(folder: str, name: str, note: dict[str, Any]) -> None:
    """Keep `note`, whole or not at all. A folder that cannot be written costs the work again, and is no fault."""
    path = _note(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, [json.dumps(note).encode("ascii")])
    except (OSError, BorealisError):
        pass


def _note(folder: str, name: str) -> Path:
    return cache_dir() / folder / f"{name}.json"
