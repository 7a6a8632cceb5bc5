"""How much memory this process may still take, on Linux, macOS and Windows.

llama.cpp says on Linux and macOS that all of it is free, and knows no cgroups.
"""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

HOST_VM_INFO64 = 4
VM_INFO64_INTS = 64  # more than the structure has in any version


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; `free` counts what the system would give back at once, such as cached files."""

    total: int
    free: int


def host_memory() -> Memory | None:
    """What there is, at most what a container allows; None where the system does not say."""
    try:
        if sys.platform == "win32":
            return _windows()
        return _macos() if sys.platform == "darwin" else linux_memory(Path("/proc"), Path("/sys/fs/cgroup"))
    except (OSError, ValueError, AttributeError):
        return None


def linux_memory(proc: Path, cgroups: Path) -> Memory | None:
    """From /proc/meminfo, and the limits of this process's cgroup and all above it, version 2 or 1."""
    table = _numbers(proc / "meminfo", 1024)
    if "MemTotal:" not in table or "MemAvailable:" not in table:
        return None
    found = Memory(table["MemTotal:"], table["MemAvailable:"])
    for limit, used in _cgroup_limits(proc / "self" / "cgroup", cgroups):
        if limit < found.total:
            found = Memory(limit, found.free)
        found = Memory(found.total, max(0, min(found.free, limit - used)))
    return found


def _cgroup_limits(membership: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that are no cached files) of every cgroup that has a limit."""
    limits = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        here = root / path.lstrip("/")
        # In a container the path may be the host's, and only the root is there.
        for folder in {here, *(parent for parent in here.parents if parent.is_relative_to(root)), root}:
            limit, used = (_text(folder / f"memory.{name}").strip() for name in names)
            if limit.isdigit() and used.isdigit():
                cached = _numbers(folder / "memory.stat", 1)
                prefix = "total_" if controllers else ""
                files = sum(cached.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                limits.append((int(limit), max(0, int(used) - files)))
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _numbers(path: Path, unit: int) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) * unit for row in rows if len(row) > 1 and row[1].isdigit()}


def _macos() -> Memory | None:
    libc = ctypes.CDLL(None)
    total, size = ctypes.c_uint64(), ctypes.c_size_t(8)
    if libc.sysctlbyname(b"hw.memsize", ctypes.byref(total), ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    counts, length = (ctypes.c_uint32 * VM_INFO64_INTS)(), ctypes.c_uint32(VM_INFO64_INTS)
    libc.mach_host_self.restype = ctypes.c_uint32
    host = ctypes.c_uint32(libc.mach_host_self())
    if libc.host_statistics64(host, HOST_VM_INFO64, counts, ctypes.byref(length)):
        return None
    free, _active, inactive = counts[:3]
    return Memory(total.value, (free + inactive) * libc.getpagesize())


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "free", "page", "free_page", "virtual", "free_virtual", "ext")),
    )


def _windows() -> Memory | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if sys.platform != "win32" or not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(status.total, status.free)
