"""Files that appear complete or not at all: written beside their final name, checked, then renamed."""

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from ..atomic_file import hidden_files
from ..checkpoint.input_files import refuse_input_as_output
from ..errors import BorealisError, InvalidInput, os_errors_as_ours
from ..file_lock import is_still_named, lock
from ..size_format import format_nbytes
from .plan import FilePlan

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class PartialFile:
    """An output that is written under a hidden name beside its final name, which it gets when it is complete.

    The hidden name is drawn at random and the file made new, so that a link or file that came with somebody's folder
    is never written to. A lock file makes sure that a second run on the same output is refused; the operating system
    drops the lock when a process dies, and the next run then removes what the killed one left behind.
    """

    def __init__(self, plan: FilePlan) -> None:
        self.plan = plan
        folder, name = plan.path.parent, plan.path.name
        self._lock_path = folder / f".{name}.lock"
        with ExitStack() as undo:
            self._lock = _locked(self._lock_path, plan.path)
            undo.callback(self._unlock)
            self.path = folder / f".{name}.{secrets.token_hex(4)}.partial"
            with _os_errors_about(plan.path):
                for path in hidden_files(plan.path):
                    path.unlink(missing_ok=True)
                self.file = self.path.open("x+b", buffering=0)
            undo.pop_all()

    def begin(self) -> None:
        """Write the header and give the file its full size, with room on the disk where that can be had at once."""
        with self._os_errors():
            data = memoryview(self.plan.header)
            while data:
                data = data[self.file.write(data) :]
            _reserve(self.file.fileno(), self.plan.size)
            self.file.truncate(self.plan.size)

    def flush(self) -> None:
        """Have the disk write what is in memory so far, without waiting for it where the system can do that."""
        with self._os_errors():
            _start_writing(self.file.fileno())

    def sync(self) -> None:
        """Put every byte on the disk, and check that the file has the planned header and size."""
        with self._os_errors():
            _fsync(self.file.fileno())
            self.file.seek(0)
            same = _read(self.file, len(self.plan.header)) == self.plan.header
            same &= os.fstat(self.file.fileno()).st_size == self.plan.size
            same &= is_still_named(self.file.fileno(), self.path)
        if not same:
            raise BorealisError(f"{self.path}: another program changed this file while it was written; run again")

    def publish(self) -> None:
        """Give the file its name. The lock is held until then: no other run can have begun at the same output.

        Raises BorealisError, and keeps the finished file under the name that it says, when it cannot be renamed.
        """
        with suppress(OSError):  # its bytes are on the disk, says `sync`
            self.file.close()
        try:
            self.path.replace(self.plan.path)
        except OSError as error:
            raise BorealisError(
                f"{self.plan.path}: cannot be replaced ({error.strerror}); the finished file is {self.path}"
            ) from error
        finally:
            self._unlock()
        _fsync_folder(self.plan.path.parent)

    def discard(self) -> None:
        """Remove what was written. Does nothing once published."""
        if self.file.closed:
            return
        try:
            with suppress(OSError):  # nobody needs what was written
                self.file.close()
            with self._os_errors():
                self.path.unlink(missing_ok=True)
        finally:
            self._unlock()

    def _os_errors(self) -> AbstractContextManager[None]:
        """Turns an OSError that names no file into one about this output."""
        return os_errors_as_ours(self.plan.path, "; nothing was kept")

    def _unlock(self) -> None:
        if os.name == "nt":  # where a file that is open cannot be removed
            self._lock.close()
        with suppress(OSError):
            self._lock_path.unlink()
        with suppress(OSError):
            self._lock.close()


def _read(file: FileIO, nbytes: int) -> bytes:
    """The next `nbytes` of the file, fewer at its end. A single read may give less than there is."""
    data = b""
    while more := file.read(nbytes - len(data)):
        data += more
    return data


def make_folders(plans: Sequence[FilePlan], undo: ExitStack) -> None:
    """Make the folders that outputs are to lie in, where they lie in a folder themselves. `undo` removes empty ones."""
    for folder in {plan.path.parent for plan in plans}:
        if not folder.exists() and folder.parent.is_dir():
            with os_errors_as_ours(folder):
                folder.mkdir()
            undo.callback(_remove_empty, folder)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def check_outputs(plans: Sequence[FilePlan]) -> None:
    """Refuse, before any work, outputs that cannot be written. Raises InvalidInput."""
    weights = {s.path for plan in plans for t in plan.tensors for s in t.tensor.source.slices()}
    refuse_input_as_output([plan.path for plan in plans], (*weights, *(path for plan in plans for path in plan.inputs)))
    seen: set[Path] = set()
    for plan in plans:
        with _os_errors_about(plan.path):
            _check_place(plan.path)
            path = Path(os.path.realpath(plan.path))  # where `resolve` raises for a loop of links
        if path in seen:
            raise InvalidInput(f"{plan.path}: two outputs would have this name; give a folder with -o")
        seen.add(path)
    _check_space(plans)


def _check_place(path: Path) -> None:
    """Raises InvalidInput, OSError."""
    folder = path.parent
    if path.is_dir():
        raise InvalidInput(f"{path}: is a folder; choose a file name with -o")
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path}: is no regular file, but a device or pipe; choose another with -o")
    if folder.is_file():
        raise InvalidInput(f"{folder}: is a file, not a folder for the output; end a file's name with .gguf")
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder for the output; create it, or choose another with -o")
    if not os.access(folder, os.W_OK):
        raise InvalidInput(f"{folder}: no permission to write here; choose another folder with -o")


def _check_space(plans: Sequence[FilePlan]) -> None:
    needed: dict[int, list[FilePlan]] = defaultdict(list)
    for plan in plans:
        needed[plan.path.parent.stat().st_dev].append(plan)
    for files in needed.values():
        size = sum(plan.size for plan in files)
        free = shutil.disk_usage(files[0].path.parent).free + sum(_left_behind_nbytes(plan.path) for plan in files)
        if size > free:
            raise InvalidInput(
                f"{files[0].path.parent}: {format_nbytes(size)} needed, {format_nbytes(free)} free; "
                "make room, or choose another folder with -o"
            )


def _left_behind_nbytes(final: Path) -> int:
    """Bytes on the disk of the partial files that killed runs have left at `final`; the next run removes them."""
    return sum(getattr(path.lstat(), "st_blocks", 0) * 512 for path in hidden_files(final))


@contextmanager
def _os_errors_about(final: Path) -> Iterator[None]:
    """Turns an OSError about a hidden file into an InvalidInput that names the final file."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{final}: cannot be written ({error.strerror}); choose another output with -o") from error


def _locked(path: Path, final: Path) -> FileIO:
    """The lock file at `path`, locked. Nothing is ever written to it, and no link is followed to it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        with _os_errors_about(final), ExitStack() as undo:
            file = undo.enter_context(FileIO(path, "r+", opener=lambda name, _: os.open(name, flags, 0o600)))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"{path}: is in the way, and no file; remove it, or choose another output with -o")
            if not lock(file.fileno()):
                raise InvalidInput(f"{final}: another run is writing this file; wait for it, or choose another with -o")
            if is_still_named(file.fileno(), path):  # else the other run ended, and removed it before we had the lock
                undo.pop_all()
                return file


if sys.platform == "win32":

    def _fsync_folder(path: Path) -> None:
        """Windows has no such call; a rename there is durable with the journal."""

else:

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
    """Reserve blocks for `size` bytes at once: workers that write then do not wait for each other to find some.

    Raises OSError when the disk is full; a file system that cannot do it gives blocks as they are written.
    (`os.posix_fallocate` would write to every block there.)
    """
    reserve = _linux("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if reserve and size and reserve(fd, 0, 0, size) and (error := ctypes.get_errno()) in FULL:
        raise OSError(error, os.strerror(error))


def _start_writing(fd: int) -> None:
    """Begin to put a file on the disk. An fsync would do, but workers that write meanwhile wait for its journal.

    The fsync at the end of every file reports errors that the disk has later.
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
