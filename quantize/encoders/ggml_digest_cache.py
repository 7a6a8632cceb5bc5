"""What the loaded ggml made of the encoders' sample, kept for types whose tables take it seconds to build.

The note's name is a digest of the library file (path, size, time of modification) and of the sample, so that another
ggml, or another sample, is asked anew.
"""

import hashlib

from ...checkpoint.types import GGMLQuantizationType
from ...machine_cache import read_note, write_note
from .libraries import library_path

NOTES = "ggml"

_here: dict[tuple[str, GGMLQuantizationType], str] = {}
"""The same by note and type, for this process: the folder of notes may be one that cannot be written."""


def recall(type: GGMLQuantizationType, sample: bytes) -> str | None:
    """The digest that the loaded ggml gave for `sample` as `type`, if it was ever asked."""
    name = _name(sample)
    known = _here.get((name, type)) or read_note(NOTES, name).get(type.name)
    return known if isinstance(known, str) else None


def keep(type: GGMLQuantizationType, sample: bytes, digest: str) -> None:
    """Remember what ggml gave."""
    name = _name(sample)
    _here[name, type] = digest
    write_note(NOTES, name, {**read_note(NOTES, name), type.name: digest})


def _name(sample: bytes) -> str:
    path = library_path()
    stat = path.stat()
    told = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
    return hashlib.sha256(told + sample).hexdigest()[:24]
