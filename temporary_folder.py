"""Temporary folders that do not outlive their process for long: the next run removes those of killed ones."""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

from .file_lock import is_still_named, lock

PREFIX = "borealis-gguf-"
LOCK = ".lock"


class TemporaryFolder:
    """A temporary folder, removed when its `with` ends, when this object is collected, or when the process exits.

    A lock on a file in it tells other runs that its process lives.
    """

    def __init__(self, *names: str) -> None:
        """`path` is the folder's subfolder of these names."""
        _remove_left_behind()
        root, held = _locked_folder()
        self.remove = weakref.finalize(self, _remove, root, held)
        self.path = root.joinpath(*names)
        self.path.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def _locked_folder() -> tuple[Path, FileIO]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=PREFIX))
        held = FileIO(root / LOCK, "x+")
        if lock(held.fileno()) and is_still_named(held.fileno(), root / LOCK):
            return root, held
        held.close()  # another run took it, in this moment, for one that was left behind


def _remove_left_behind() -> None:
    """Remove this user's folders whose lock nobody holds."""
    with suppress(OSError):
        for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if _is_own_folder(root):
                with suppress(OSError):  # without a lock file: it is being made
                    held = FileIO(root / LOCK, "r+")
                    if lock(held.fileno()):
                        _remove(root, held)
                    held.close()


def _is_own_folder(root: Path) -> bool:
    own = not hasattr(os, "getuid") or root.lstat().st_uid == os.getuid()
    return own and root.is_dir() and not root.is_symlink()


def _remove(root: Path, held: FileIO) -> None:
    if os.name == "nt":  # where no open file can be removed
        held.close()
    shutil.rmtree(root, ignore_errors=True)
    held.close()
