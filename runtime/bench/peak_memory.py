"""The peak resident memory of this process."""

import sys
from pathlib import Path

import psutil


def peak_memory() -> int:
    """Most bytes that were resident, mapped pages of a model file included."""
    if sys.platform == "linux":  # ru_maxrss would be at least that of the parent when it forked
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
