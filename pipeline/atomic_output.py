"""Files that appear complete or not at all: written beside their final name, checked, then renamed."""

import ctypes
import errno
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import BorealisError, InvalidInput
from .plan import FilePlan

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class PartialFile:
    """An output that is being written under a hidden name. Locked: a second run on the same output is refused.

    The operating system drops the lock when a process dies, so what a killed run left behind is simply taken over.
    """

    def __init__(self, plan: FilePlan) -> None:
        self.plan = plan
        self.path = plan.path.with_name(f".{plan.path.name}.partial")
        self.file = _open_locked(self.path, plan.path)

    def begin(self) -> None:
        """Write the header and give the file its full size, with room on the disk where that can be had at once."""
        self.file.truncate(0)
        self.file.write(self.plan.header)
        _reserve(self.file.fileno(), self.plan.size)
        self.file.truncate(self.plan.size)

    def flush(self) -> None:
        """Have what has been written so far put on the disk, without waiting for it where the system can do that."""
        _start_writing(self.file.fileno())

    def sync(self) -> None:
        """Put every byte on the disk, and check that what stands there begins and ends as planned."""
        _fsync(self.file.fileno())
        self.file.seek(0)
        found = self.file.read(len(self.plan.header))
        if found != self.plan.header or os.fstat(self.file.fileno()).st_size != self.plan.size:
            raise BorealisError(f"{self.path}: another program changed this file while it was written; run again")

    def publish(self) -> None:
        self.file.close()
        self.path.replace(self.plan.path)
        _fsync_folder(self.plan.path.parent)

    def discard(self) -> None:
        """Remove what was written. Does nothing once published."""
        if not self.file.closed:
            self.file.close()
            self.path.unlink(missing_ok=True)


def check_outputs(plans: Sequence[FilePlan]) -> None:
    """Refuse, before any work, outputs that cannot be written. Raises InvalidInput."""
    sources = {s.path for plan in plans for t in plan.tensors for s in t.tensor.source.slices()}
    sources = {path.resolve() for path in sources}
    seen: set[Path] = set()
    for plan in plans:
        path = plan.path.resolve()
        if path in sources:
            raise InvalidInput(f"{plan.path}: the output would overwrite its own input; choose another with -o")
        if path in seen:
            raise InvalidInput(f"{plan.path}: two outputs would have this name; give a folder with -o")
        seen.add(path)
        folder = plan.path.parent
        if plan.path.is_dir():
            raise InvalidInput(f"{plan.path}: is a folder; choose a file name with -o")
        if not folder.is_dir():
            raise InvalidInput(f"{folder}: no such folder for the output; create it, or choose another with -o")
        if not os.access(folder, os.W_OK):
            raise InvalidInput(f"{folder}: no permission to write here; choose another folder with -o")
    _check_space(plans)


def _check_space(plans: Sequence[FilePlan]) -> None:
    needed: dict[int, list[FilePlan]] = defaultdict(list)
    for plan in plans:
        needed[plan.path.parent.stat().st_dev].append(plan)
    for files in needed.values():
        size, free = sum(plan.size for plan in files), shutil.disk_usage(files[0].path.parent).free
        if size > free:
            raise InvalidInput(
                f"{files[0].path.parent}: {_amount(size)} needed, {_amount(free)} free; "
                "make room, or choose another folder with -o"
            )


def _amount(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def _open_locked(path: Path, final: Path) -> FileIO:
    while True:
        try:
            path.touch()
            file = path.open("r+b", buffering=0)
        except OSError as error:
            raise InvalidInput(
                f"{final}: cannot be written ({error.strerror}); choose another output with -o"
            ) from error
        if not _lock(file.fileno()):
            file.close()
            raise InvalidInput(f"{final}: another run is writing this file; wait for it, or choose another with -o")
        if _still_named(file.fileno(), path):
            return file
        file.close()  # the other run finished and renamed it between our open and our lock


def _still_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> bool:
        os.lseek(fd, 1 << 40, os.SEEK_SET)  # far behind the data: locks are mandatory there
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(fd, 0, os.SEEK_SET)
        return True

    def _fsync_folder(path: Path) -> None:
        """Windows has no such call; a rename there is durable with the journal."""

else:
    import fcntl

    def _lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: two runs at once are then the user's own care
            return True
        return True

    def _fsync_folder(path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError:  # some network file systems refuse; the rename itself has happened
            pass
        finally:
            os.close(fd)


@cache
def _linux(name: str, *arguments: Any) -> Any:
    """A function of Linux's C library, which gives 0 when all is well; None elsewhere, or in a library without it."""
    if sys.platform != "linux":
        return None
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.argtypes = arguments
    return function


def _reserve(fd: int, size: int) -> None:
    """Blocks for `size` bytes, all at once: workers that write then do not wait for each other to find some.

    Raises OSError when the disk is full; a file system that cannot do it gives blocks as they are written.
    (`os.posix_fallocate` would write to every block there.)
    """
    reserve = _linux("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if reserve and size and reserve(fd, 0, 0, size) and (error := ctypes.get_errno()) in FULL:
        raise OSError(error, os.strerror(error))


def _start_writing(fd: int) -> None:
    """Begin to put a file on the disk. An fsync would do, but workers that write meanwhile wait for its journal.

    What goes wrong on the disk later is told by the fsync that every file ends with.
    """
    start = _linux("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if start is None or start(fd, 0, 0, SYNC_FILE_RANGE_WRITE):
        _fsync(fd)


def _fsync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)
