"""Child processes of this package: how they are started, and how their death is named.

Native code can die in ways Python cannot catch. What may die runs in a child; the parent says what happened.
"""

import importlib
import os
import signal
import sys
from typing import IO

BOOT = "import sys; sys.path[:] = {path!a}; from {module} import main; main()"
WINDOWS_FAULTS = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap corruption",
    0xC0000409: "abort",
}


FROZEN = "--borealis-gguf-child"
"""First argument of a frozen app that starts itself as a child; see the hook for PyInstaller."""


def child_command(module: str, *args: str) -> list[str]:
    """A command line that calls `main()` of `module`, with this process's import path and nothing added to it.

    (`-m` would put the working directory first, where a stray `numpy.py` may lie.)
    """
    if getattr(sys, "frozen", False):
        return [sys.executable, FROZEN, module, *args]
    return [sys.executable, "-c", BOOT.format(path=sys.path, module=module), *args]


def run_if_child() -> None:
    """For a frozen app, before anything else: if it was started as a child, be that, and do not return."""
    if sys.argv[1:2] != [FROZEN]:
        return
    module = sys.argv[2]
    del sys.argv[1:3]
    if not module.startswith(f"{__name__.partition('.')[0]}."):
        sys.exit(f"{module}: not a part of this package")
    importlib.import_module(module).main()
    sys.exit(0)


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


def private_stdout() -> IO[bytes]:
    """For a child: the pipe to the parent. What native code prints there goes to standard error instead."""
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe
