"""The files that tensors are read from: opened, read at a position, and checked for changes at the end of a run."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from io import FileIO, RawIOBase
from pathlib import Path

import numpy as np

from ..checkpoint.file_access import ReadOnlyFile, file_stamp, reason
from ..checkpoint.types import FileStamp, Slice
from ..errors import BorealisError
from .plan import FilePlan
from .tasks import Task

OpenSlice = Callable[[Slice, threading.Event], RawIOBase]
"""Opens the file a slice lies in. When the event is set, a read that waits gives up: it raises Cancelled."""


def open_local(slice: Slice, stop: threading.Event) -> RawIOBase:
    """A file on this machine, unbuffered."""
    if slice.remote is not None:
        raise BorealisError(f"{slice.path}: lies on {slice.remote.url}, and nobody here can open that")
    return ReadOnlyFile(slice.path)


def is_remote(plans: Sequence[FilePlan]) -> bool:
    """Whether any weights are read over the network."""
    return any(t.tensor.source.slice.remote for plan in plans for t in plan.tensors)


def read_exactly(file: RawIOBase, start: int, data: np.ndarray, task: Task) -> None:
    """Fill `data` (uint8) from byte `start` of the source file of `task`. Raises BorealisError, naming the byte, at the
    file's end and where the disk fails."""
    file.seek(start)
    view, got = data.data, 0
    while got < len(view):
        try:
            n = file.readinto(view[got:])
        except OSError as error:
            raise BorealisError(
                f"{task.tensor.source.slice.path}: {task.tensor.name}, at offset {start + got}: cannot be read: "
                f"{reason(error)}"
            ) from error
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


def source_stamps(plans: Sequence[FilePlan]) -> dict[Path, FileStamp]:
    """The stamps of all local source files, as the plans have them; each read of a remote one compares its ETag."""
    slices = {s for plan in plans for t in plan.tensors for s in t.tensor.source.slices() if s.remote is None}
    return {slice.path: slice.stamp or file_stamp(slice.path) for slice in slices}


def require_unchanged(stamps: Mapping[Path, FileStamp], when: str) -> None:
    """Raises BorealisError for a file that no longer has its stamp, saying `when` it changed."""
    for path, stamp in stamps.items():
        if file_stamp(path) != stamp:
            raise BorealisError(f"{path}: changed {when}; run again when nothing writes to it")
