"""A cache of digests: how the loaded ggml encodes the sample, for types whose tables take it seconds to build.

An entry's name is a digest of the library file (path, size, time of modification) and of the sample, so that another
ggml or another sample has an entry of its own.
"""

import hashlib

from ...checkpoint.types import GGMLQuantizationType
from ...machine_cache import read_note, write_note
from .libraries import library_path

CACHE_FOLDER = "ggml"

_in_memory: dict[tuple[str, GGMLQuantizationType], str] = {}
"""The same entries in memory, for this process: the cache folder may be read-only."""


def read_digest(type: GGMLQuantizationType, sample: bytes) -> str | None:
    """The digest of `sample` as `type` by the loaded ggml, if it is in the cache."""
    name = _name(sample)
    known = _in_memory.get((name, type)) or read_note(CACHE_FOLDER, name).get(type.name)
    return known if isinstance(known, str) else None


def write_digest(type: GGMLQuantizationType, sample: bytes, digest: str) -> None:
    """Put a digest into the cache."""
    name = _name(sample)
    _in_memory[name, type] = digest
    write_note(CACHE_FOLDER, name, {**read_note(CACHE_FOLDER, name), type.name: digest})


def _name(sample: bytes) -> str:
    path = library_path()
    stat = path.stat()
    identity = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
    return hashlib.sha256(identity + sample).hexdigest()[:24]
