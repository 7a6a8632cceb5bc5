"""Writes a small file so that it appears complete or not at all: a new hidden file beside it, which is then renamed."""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedIOBase, BufferedWriter, FileIO, IOBase
from pathlib import Path

from .errors import BorealisError, InvalidInput
from .file_lock import is_still_named, lock

PRIVATE = 0o600
"""The mode of a file that its owner alone may read."""


def write_file(path: Path, parts: Iterable[bytes], mode: int = 0o666) -> None:
    """Write `parts` to `path`. A link or file that somebody put in the folder is replaced, never written through.

    Raises InvalidInput where `path` is a folder, device or pipe, BorealisError when the file cannot be written.
    """
    with _os_errors_about(path):
        if path.exists() and not path.is_file():
            raise InvalidInput(f"{path}: cannot be written: it is a folder, device or pipe; choose another name")
        with _written_beside(path, parts, mode) as partial:
            partial.replace(path)


def write_if_absent(path: Path, parts: Iterable[bytes], mode: int = 0o666) -> None:
    """Write `parts` to `path` if nothing is there. Of several processes that do so at once, one gives the file.

    Raises BorealisError when it cannot be written.
    """
    with _os_errors_about(path), _written_beside(path, parts, mode) as partial:
        try:
            if os.name == "nt":
                partial.rename(path)  # which replaces nothing there
            else:
                path.hardlink_to(partial)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                partial.replace(path)


@contextmanager
def _written_beside(path: Path, parts: Iterable[bytes], mode: int) -> Iterator[Path]:
    """A new hidden file beside `path` that holds `parts`; it is removed at the end if it still has its name.

    It is locked until then. What has no lock was left behind by a killed run, and is removed first.
    """
    for left in hidden_files(path):
        _remove_unlocked(left)
    partial, file = _locked_new_file(path, mode)
    with ExitStack() as undo:
        undo.callback(_remove, partial, undo.enter_context(file))
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        if os.name == "nt":  # where no open file can be renamed
            file.close()
        yield partial


def _locked_new_file(path: Path, mode: int) -> tuple[Path, BufferedIOBase]:
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = BufferedWriter(FileIO(partial, "x", opener=lambda name, flags: os.open(name, flags, mode)))
        if lock(file.fileno()) and is_still_named(file.fileno(), partial):
            return partial, file
        file.close()  # another run took it, in this moment, for one that was left behind


def hidden_files(path: Path) -> list[Path]:
    """Hidden partial files beside `path` that runs are writing, or that killed runs have left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    with os.scandir(path.parent) as entries:
        return [Path(e) for e in entries if pattern.fullmatch(e.name) and e.is_file(follow_symlinks=False)]


def _remove(partial: Path, file: IOBase) -> None:
    if os.name == "nt":
        file.close()
    partial.unlink(missing_ok=True)


def _remove_unlocked(path: Path) -> None:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(OSError), FileIO(os.open(path, flags), "r+") as file:
        fd = file.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode) and lock(fd) and is_still_named(fd, path):
            _remove(path, file)


@contextmanager
def _os_errors_about(path: Path) -> Iterator[None]:
    """Turns an OSError about a hidden file into a BorealisError that names the file it is for."""
    try:
        yield
    except OSError as error:
        raise BorealisError(f"{path}: cannot be written ({error.strerror or error})") from error
