"""The files that tensors are read from: opened, read at a position, and checked for changes at the end of a run."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from io import FileIO, RawIOBase
from pathlib import Path

import numpy as np

from ..checkpoint.types import Slice
from ..errors import BorealisError
from .plan import FilePlan
from .tasks import Task

OpenSlice = Callable[[Slice, threading.Event], RawIOBase]
"""Opens the file a slice lies in. When the event is set, a read that waits gives up: it raises Cancelled."""

Stamp = tuple[int, int, int]
"""A file's size, time of modification in ns, and inode: one of them differs once the file has changed."""


def open_local(slice: Slice, stop: threading.Event) -> RawIOBase:
    """A file on this machine, unbuffered."""
    if slice.remote is not None:
        raise BorealisError(f"{slice.path}: lies on {slice.remote.url}, and nobody here can open that")
    return slice.path.open("rb", buffering=0)


def is_remote(plans: Sequence[FilePlan]) -> bool:
    """Whether any weights are read over the network."""
    return any(t.tensor.source.slice.remote for plan in plans for t in plan.tensors)


def read_exactly(file: RawIOBase, start: int, data: np.ndarray, task: Task) -> None:
    """Fill `data` (uint8) from byte `start` of the source file of `task`. Raises BorealisError at the file's end."""
    file.seek(start)
    view, got = data.data, 0
    while got < len(view):
        n = file.readinto(view[got:])
        if not n:
            raise BorealisError(
                f"{task.tensor.source.slice.path}: ends inside {task.tensor.name}, at offset {start + got}; the file "
                "is truncated: fetch it again"
            )
        got += n


PREFETCH_BYTES = 1 << 25
"""How far ahead of a read the system is to read a local file: some tasks, so that the disk never waits for them."""


def prefetch(file: RawIOBase, start: int, nbytes: int) -> None:
    """Have the system read as many bytes, PREFETCH_BYTES behind this range, in the background.

    Workers take ranges in turn, in which the system sees no sequential reader. Most tasks read the file in its order,
    so nearly all of it is prefetched. Does nothing for remote files, and where the system has no such call.
    """
    if isinstance(file, FileIO) and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), start + PREFETCH_BYTES, nbytes, os.POSIX_FADV_WILLNEED)


def source_stamps(plans: Sequence[FilePlan]) -> dict[Path, Stamp]:
    """The stamps of all local source files; each read of a remote one compares its ETag instead."""
    slices = {s for plan in plans for t in plan.tensors for s in t.tensor.source.slices()}
    return {path: _stamp(path) for path in {slice.path for slice in slices if slice.remote is None}}


def require_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Raises BorealisError for a file that no longer has its stamp."""
    for path, stamp in stamps.items():
        if _stamp(path) != stamp:
            raise BorealisError(f"{path}: changed while it was read; run again when nothing writes to it")


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
