"""The key that seals saved conversations: random bytes in the user's data folder, the same for all processes."""

import hashlib
import secrets
from contextlib import suppress
from pathlib import Path

from ..atomic_file import PRIVATE, write_if_absent
from ..errors import BorealisError
from ..machine_cache import cache_dir
from ..user_data import data_dir, private_file

NAME = "conversation.key"
KEY_BYTES = 32


def read_key() -> bytes | None:
    """The key, if this user has one on this machine."""
    with suppress(OSError, BorealisError):
        private_file(NAME)  # moves the key of an earlier version
    return _held(data_dir() / NAME) or _held(cache_dir() / NAME)


def make_key() -> bytes:
    """The key, made if there is none. Raises BorealisError when it cannot be kept."""
    path = data_dir() / NAME
    try:
        path = private_file(NAME)
        if not path.exists():
            write_if_absent(path, [secrets.token_bytes(KEY_BYTES)], PRIVATE)
    except (OSError, BorealisError) as error:
        raise BorealisError(f"{error}; set BOREALIS_GGUF_DATA to a folder that takes files") from error
    if (key := _held(path)) is None:
        raise BorealisError(f"{path}: is damaged; remove it, and a new key is made")
    return key


def key_id(key: bytes) -> str:
    """What tells this key from others, and tells nobody the key."""
    return hashlib.sha256(b"borealis-gguf key " + key).hexdigest()[:16]


def _held(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            held = file.read(KEY_BYTES + 1)
    except OSError:
        return None
    return held if len(held) == KEY_BYTES else None
