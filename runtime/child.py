"""Child processes of this package: how they are started, and how their death is named.

Native code can die in ways Python cannot catch. What may die runs in a child; the parent says what happened.
"""

import os
import signal
import sys

BOOT = "import sys; sys.path[:] = {path!a}; from {module} import main; main()"
WINDOWS_FAULTS = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap corruption",
    0xC0000409: "abort",
}


def child_command(module: str, *args: str) -> list[str]:
    """A command line that calls `main()` of `module`, with this process's import path and nothing added to it.

    (`-m` would put the working directory first, where a stray `numpy.py` may lie.)
    """
    return [sys.executable, "-c", BOOT.format(path=sys.path, module=module), *args]


def crash_name(returncode: int) -> str | None:
    """The signal (POSIX) or fault (Windows) a process died of; None when it ended by itself."""
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    if os.name == "nt" and returncode >= 0xC0000000:
        return WINDOWS_FAULTS.get(returncode, f"fault {returncode:#x}")
    return None


def die_quietly() -> None:
    """For a child: no core file, no crash dialogue; the parent reports."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
