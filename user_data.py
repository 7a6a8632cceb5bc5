"""The folder of what belongs to the user and cannot be made again: the conversation key, the typed history."""

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path

from .atomic_file import PRIVATE, write_if_absent
from .machine_cache import cache_dir


def data_dir() -> Path:
    """BOREALIS_GGUF_DATA, else the platform's folder for a user's data."""
    chosen = os.environ.get("BOREALIS_GGUF_DATA")
    return Path(chosen) if chosen else user_data_path("borealis-gguf", appauthor=False)


def private_file(name: str) -> Path:
    """The path of file `name` in the data folder, which is made for its owner alone. Raises OSError, BorealisError.

    A file that an earlier version kept in the cache folder, where it may be deleted at any time, is moved here.
    """
    path, old = data_dir() / name, cache_dir() / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path != old and not path.exists():
        with suppress(FileNotFoundError):  # there is none, or another process has moved it
            write_if_absent(path, [old.read_bytes()], PRIVATE)
            old.unlink()
    return path
