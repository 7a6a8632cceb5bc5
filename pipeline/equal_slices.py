"""Compares stored arrays that a plan takes for one and the same, before any file is written."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from io import RawIOBase

from ..checkpoint.types import Slice
from ..errors import STOPPED, Cancelled, InvalidInput
from .plan import EqualSlices
from .sources import OpenSlice, open_local

CHUNK = 4 << 20
REMOTE_CHUNK, REMOTE_CHUNKS = 64 << 10, 16
"""Remote arrays are sampled: to fetch an output layer whole, only to leave it out, would take a third of a download."""


def require_equal(
    pairs: Iterable[EqualSlices], open_slice: OpenSlice = open_local, stop: threading.Event | None = None
) -> None:
    """Raises InvalidInput, with the pair's own message, when two arrays hold other bytes; Cancelled once `stop` is set.

    Local arrays are compared whole, with bounded memory; remote ones at evenly spaced places.
    """
    for pair in dict.fromkeys(pairs):
        if not same_bytes(pair.first, pair.second, open_slice, stop or threading.Event()):
            raise InvalidInput(pair.otherwise)


def same_bytes(first: Slice, second: Slice, open_slice: OpenSlice, stop: threading.Event) -> bool:
    """Whether both arrays have the same type, shape and bytes. The first difference ends the reading."""
    if (first.type, first.shape) != (second.type, second.shape):
        return False
    with closing(open_slice(first, stop)) as left, closing(open_slice(second, stop)) as right:
        for start, nbytes in _chunks(first.nbytes, remote=bool(first.remote or second.remote)):
            if stop.is_set():
                raise Cancelled(STOPPED)
            if _read(left, first, start, nbytes) != _read(right, second, start, nbytes):
                return False
    return True


def _chunks(nbytes: int, remote: bool) -> Iterator[tuple[int, int]]:
    """The ranges to compare, as (start, length): all bytes, or REMOTE_CHUNKS pieces from the first to the last byte."""
    if remote and nbytes > REMOTE_CHUNK * REMOTE_CHUNKS:
        last = nbytes - REMOTE_CHUNK
        yield from ((last * n // (REMOTE_CHUNKS - 1), REMOTE_CHUNK) for n in range(REMOTE_CHUNKS))
    else:
        yield from ((start, min(CHUNK, nbytes - start)) for start in range(0, nbytes, CHUNK))


def _read(file: RawIOBase, slice: Slice, start: int, nbytes: int) -> bytes:
    file.seek(slice.offset + start)
    data = bytearray()
    while len(data) < nbytes:
        piece = file.read(nbytes - len(data))
        if not piece:
            raise InvalidInput(f"{slice.path}: ends at byte {file.tell()}; the file is truncated: fetch it again")
        data += piece
    return bytes(data)
