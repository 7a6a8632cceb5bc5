"""Reads the files it is given and tells, as JSON, what happened to each, how long it took, and the peak memory.

Run as a process of its own, so that the peak is that of these files: python memory_limits.py gguf|safetensors FILE…
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def read_apart(kind: str, *paths: Path) -> tuple[list[dict[str, Any]], int]:
    """What reading each of `paths` in a new process gave, and that process's peak memory in bytes."""
    run = subprocess.run(
        [sys.executable, __file__, kind, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    return answer["results"], answer["peak"]


def peak_memory() -> int:
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        counters = (ctypes.c_size_t * 10)()  # PROCESS_MEMORY_COUNTERS; the peak working set is the second word
        get = ctypes.WinDLL("psapi").GetProcessMemoryInfo
        get.argtypes = [wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD]
        ctypes.WinDLL("kernel32").GetCurrentProcess.restype = wintypes.HANDLE
        get(ctypes.WinDLL("kernel32").GetCurrentProcess(), counters, ctypes.sizeof(counters))
        return counters[1]
    if sys.platform == "linux":  # getrusage counts what the parent had before this process began
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(kind: str, *paths: str) -> None:
    from borealis_gguf.checkpoint.gguf import read_gguf
    from borealis_gguf.checkpoint.safetensors import read_header
    from borealis_gguf.errors import InvalidInput

    read = {"gguf": read_gguf, "safetensors": read_header}[kind]
    results = []
    for path in paths:
        start, message = time.process_time(), None
        try:
            read(Path(path))
        except InvalidInput as error:
            message = str(error)
        results.append({"message": message, "seconds": time.process_time() - start})
    print(json.dumps({"results": results, "peak": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
