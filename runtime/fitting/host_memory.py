"""How much memory this process may still take: what the system has free, within the limits of its cgroups.

llama.cpp reports all memory as free on Linux and macOS, and ignores cgroups.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes; `free` includes what the system would reclaim at once, such as cached files."""

    total: int
    free: int


def host_memory() -> HostMemory | None:
    """The host's memory, at most what a container allows; None where the system does not report it."""
    try:
        memory = psutil.virtual_memory()
        found = HostMemory(memory.total, memory.available)
        if sys.platform == "linux":
            return within_cgroups(found, Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
        return found
    except (OSError, ValueError, AttributeError, RuntimeError, KeyError):
        return None


def within_cgroups(memory: HostMemory, membership: Path, cgroups: Path) -> HostMemory:
    """`memory` within the limits of this process's cgroup and its parents, version 2 or 1 (Linux)."""
    total, free = memory.total, memory.free
    for limit, used in _cgroup_limits(membership, cgroups):
        total, free = min(total, limit), max(0, min(free, limit - used))
    return HostMemory(total, free)


def _cgroup_limits(membership: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use without cached files) of every cgroup that has a limit."""
    limits = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        here = root / path.lstrip("/")
        # In a container the path may be the host's, and only the root exists.
        for folder in {here, *(parent for parent in here.parents if parent.is_relative_to(root)), root}:
            limit, used = (_text(folder / f"memory.{name}").strip() for name in names)
            if limit.isdigit() and used.isdigit():
                prefix = "total_" if controllers else ""
                limits.append((int(limit), max(0, int(used) - _cached_files(folder / "memory.stat", prefix))))
    return limits


def _cached_files(stat: Path, prefix: str) -> int:
    """Bytes of cached files, which the kernel would drop."""
    rows = dict(line.split(maxsplit=1) for line in _text(stat).splitlines() if " " in line)
    return sum(int(rows.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
