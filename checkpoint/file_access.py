"""Opens untrusted files, and words error messages: quoting, file names, what a file is by its first bytes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidInput

SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"),
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive (PyTorch's .bin and .pt files are); convert it to safetensors first"),
    (b"\x80\x02", "a Python pickle; convert it to safetensors first"),
    (b"\x80\x04", "a Python pickle; convert it to safetensors first"),
    (b"\x93NUMPY", "a numpy array"),
    (b"lmgg", "a GGML file from before GGUF; convert the original checkpoint instead"),
    (b"fmgg", "a GGML file from before GGUF; convert the original checkpoint instead"),
    (b"tjgg", "a GGML file from before GGUF; convert the original checkpoint instead"),
    (b"<!DOCTYPE", "an HTML page, so the download went wrong"),
    (b"<html", "an HTML page, so the download went wrong"),
)


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Open a regular file for reading and return it with its size.

    A pipe or device is refused before it is opened, since opening one can block for ever.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidInput(f"{path}: not a file" + (" but a folder" if path.is_dir() else ""))
        file = path.open("rb", buffering=1 << 18)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read: {reason(error)}") from error
    return file, os.fstat(file.fileno()).st_size


def reason(error: OSError | ValueError) -> str:
    """The system's own words, without the path (which the message already holds)."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def recognize(head: bytes) -> str | None:
    """What a file is that begins with `head`, when it is not what its name says."""
    return next((what for magic, what in SIGNATURES if head.startswith(magic)), None)


def quote(text: str, limit: int = 80) -> str:
    """Foreign text as part of a one-line message: escaped, and cut when it is long."""
    return ascii(text) if len(text) <= limit else ascii(text[:limit]) + "…"


def shown(name: str) -> str:
    """A file name as it is, unless it would break the line or hide something."""
    return name if name.isprintable() and len(name) <= 1000 else quote(name)


def exists(path: Path) -> bool:
    """Like Path.exists, and False for what no file system could hold."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def extended(path: Path) -> Path:
    """The same path; on Windows one near or beyond 260 characters gets the prefix that lifts that limit."""
    # abspath also drops "..", which that prefix makes a literal name
    return Path(extended_windows(os.path.abspath(path))) if os.name == "nt" else path  # noqa: PTH100


def extended_windows(absolute: str) -> str:
    if len(absolute) < 180 or absolute.startswith("\\\\?\\"):  # files inside a folder need room too
        return absolute
    return f"\\\\?\\UNC\\{absolute[2:]}" if absolute.startswith("\\\\") else f"\\\\?\\{absolute}"
