"""Opens untrusted files, recognizes formats by their first bytes, and quotes untrusted text for error messages."""

import os
import stat
from contextlib import ExitStack, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidInput
from .types import FileStamp

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


def file_stamp(path: Path, file: BinaryIO | None = None) -> FileStamp:
    """The stamp of the open `file`, or else of the file at `path` now. Raises InvalidInput, naming `path`."""
    try:
        stat = os.fstat(file.fileno()) if file else path.stat()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {reason(error)}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


class ReadOnlyFile(FileIO):
    """A file for reading, unbuffered. What its closing has to report is no loss to a reader."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _NamedFile(ReadOnlyFile):
    """Its errors of the disk are InvalidInput, and say which file and which byte."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise self._unreadable(error) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> InvalidInput:
        return InvalidInput(f"{self.name}: byte {self.tell()}: cannot be read: {reason(error)}")


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Opens a regular file for reading and returns it with its size.

    Pipes and devices are refused before they are opened, since opening one can block for ever. Reading raises
    InvalidInput, too, where the disk fails.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidInput(f"{path}: not a file" + (" but a folder" if path.is_dir() else ""))
        file = BufferedReader(_NamedFile(path), 1 << 18)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read: {reason(error)}") from error
    with ExitStack() as undo:
        undo.enter_context(file)
        size = file_stamp(path, file)[0]
        undo.pop_all()
    return file, size


def reason(error: OSError | ValueError) -> str:
    """Returns the operating system's message without the path, which the caller's message already holds."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def recognize(head: bytes) -> str | None:
    """Returns a description of the file format that `head`, the first bytes of a file, belongs to; None if unknown."""
    return next((description for magic, description in SIGNATURES if head.startswith(magic)), None)


def quote(text: str, limit: int = 80) -> str:
    """Escapes untrusted text for a one-line message, and cuts it after `limit` characters."""
    return ascii(text) if len(text) <= limit else ascii(text[:limit]) + "…"


def shown(name: str) -> str:
    """Returns a file name unchanged if it is printable and short, else quoted."""
    return name if name.isprintable() and len(name) <= 1000 else quote(name)


def exists(path: Path) -> bool:
    """Like Path.exists, but returns False for a path that the operating system rejects."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def extended(path: Path) -> Path:
    """Returns `path`; on Windows, a path near or beyond 260 characters gets the prefix that lifts that limit."""
    # abspath also resolves "..", which is a literal name behind the prefix
    return Path(extended_windows(os.path.abspath(path))) if os.name == "nt" else path  # noqa: PTH100


def extended_windows(absolute: str) -> str:
    if len(absolute) < 180 or absolute.startswith("\\\\?\\"):  # leaves room for the names of files inside a folder
        return absolute
    return f"\\\\?\\UNC\\{absolute[2:]}" if absolute.startswith("\\\\") else f"\\\\?\\{absolute}"
