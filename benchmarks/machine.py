"""What this machine can do, and what a process takes of it: rates of disk and memory, and memory of a process tree."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 1 << 22
MOST = 4 << 30
"""Bytes of a file that are read to find out a rate."""


def forget(*paths: Path) -> None:
    """Have the system drop what it keeps of files in memory: the next read comes from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> float:
    """GB/s of reading (the first 4 GB of) a file, by one thread, in order."""
    buffer, done, began = bytearray(BLOCK), 0, time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while done < MOST and (n := file.readinto(buffer)):
            done += n
    return done / (time.perf_counter() - began) / 1e9


def _write(path: Path, wait: bool) -> float:
    """GB/s of writing a new file of 1 GB; `wait` until it is on the disk."""
    buffer, began = os.urandom(BLOCK), time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(256):
            file.write(buffer)
        if wait:
            os.fsync(file.fileno())
    rate = 256 * BLOCK / (time.perf_counter() - began) / 1e9
    path.unlink()
    return rate


def _copy() -> float:
    """GB/s of copying memory that is larger than any cache."""
    a, b = np.ones(1 << 28, np.uint8), np.empty(1 << 28, np.uint8)
    np.copyto(b, a)
    began = time.perf_counter()
    np.copyto(b, a)
    return a.size / (time.perf_counter() - began) / 1e9


def rates(folder: Path, source: Path) -> dict[str, float]:
    """GB/s, by one thread: reading `source` from the disk and from memory, copying memory, writing to either."""
    forget(source)
    cold = _read(source)
    return {
        "disk read": cold,
        "warm read": _read(source),
        "memory copy": _copy(),
        "warm write": _write(folder / "rate", wait=False),
        "disk write": _write(folder / "rate", wait=True),
    }


def limits(read: int, written: int, rate: dict[str, float], seconds: float) -> str:
    """How `seconds` stand to what moving `read` and `written` bytes alone would take, one after the other."""
    lines = [f"{read / 1e9:.2f} GB read, {written / 1e9:.2f} GB written, in {seconds:.2f} s"]
    for what, reading, writing in (
        ("disk to disk", "disk read", "disk write"),
        ("memory to disk", "warm read", "disk write"),
        ("memory to memory", "warm read", "warm write"),
        ("memory copied once", "memory copy", "memory copy"),
    ):
        least = read / 1e9 / rate[reading] + written / 1e9 / rate[writing]
        lines.append(f"  {what:18} at {rate[reading]:.2f} and {rate[writing]:.2f} GB/s: {least:6.2f} s")
        lines[-1] += f", {seconds / least:.2f} times as long"
    return "\n".join(lines)


def _tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                yield from _tree(int(child))


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold now; what they share counts for each."""
    pages = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError, IndexError):
            pages += int(Path(f"/proc/{each}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watched:
    """While it is entered: the most memory that a process and its children hold together, in `peak`, where /proc is."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.peak = 0
        self._pid, self._ended = process.pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, resident(self._pid))

    def __enter__(self) -> "Watched":
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident:
            self._thread.join()
