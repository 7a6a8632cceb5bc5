"""Starts the child processes of this package, and names the crash when one dies.

Native code can crash in ways that Python cannot catch. So it runs in a child, and the parent reports what happened.
"""

import atexit
import contextlib
import importlib
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import weakref
from typing import IO, Any

from ...errors import BorealisError

BOOT = "import sys; sys.path[:] = {path!a}; from {module} import main; main()"
WINDOWS_FAULTS = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap corruption",
    0xC0000409: "abort",
}
FROZEN = "--borealis-gguf-child"
"""First argument of a frozen app that starts itself as a child."""
PACKAGE = __name__.partition(".")[0]
CHILDREN = tuple(
    f"{PACKAGE}.{module}"
    for module in (
        "quality.check_worker",
        "runtime.bench.speed_worker",
        "runtime.process.model_worker",
        "runtime.prompting.template_worker",
        "runtime.fitting.cpu_probe",
    )
)
"""The modules that run as children."""
API_KEY_VARIABLE = "BOREALIS_GGUF_API_KEY"
SECRET_VARIABLES = {API_KEY_VARIABLE, "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"}
"""Environment variables that no child needs: a hostile model file may take it over."""

_run_if_child_called = False


def child_command(module: str, *args: str) -> list[str]:
    """A command line that calls `main()` of `module`, with this process's import path and nothing added to it.

    (`-m` would put the working directory first, where a stray `numpy.py` may lie.)
    In a frozen app `sys.executable` is the app. Raises BorealisError where that would only start it once more.
    """
    if not getattr(sys, "frozen", False):
        return [sys.executable, "-c", BOOT.format(path=sys.path, module=module), *args]
    if not _run_if_child_called:
        raise BorealisError(
            f"this frozen app cannot start child processes; call {__name__}.run_if_child() first thing in its main "
            "script (PyInstaller does so by the hook that comes with the package)"
        )
    return [sys.executable, FROZEN, module, *args]


def child_environment() -> dict[str, str]:
    """The environment of every child: this process's, without its secrets."""
    return {name: value for name, value in os.environ.items() if name.upper() not in SECRET_VARIABLES}


_running: "weakref.WeakSet[subprocess.Popen[bytes]]" = weakref.WeakSet()


def kill_at_exit(process: "subprocess.Popen[bytes]") -> None:
    """Have `process` end with this one at the latest, also where a thread still waits for it."""
    _running.add(process)


@atexit.register
def _kill_running() -> None:
    for process in list(_running):
        with contextlib.suppress(OSError):
            process.kill()


def run_if_child() -> None:
    """For a frozen app, to be called before anything else: where it was started as a child, run that and exit.

    Otherwise it only reads `sys.argv`.
    """
    global _run_if_child_called
    _run_if_child_called = True
    if sys.argv[1:2] != [FROZEN]:
        return
    module = "".join(sys.argv[2:3])
    del sys.argv[1:3]
    if module not in CHILDREN:
        sys.exit(f"{module!r}: not a child process of {PACKAGE}")
    importlib.import_module(module).main()
    sys.exit(0)


def crash_name(returncode: int) -> str | None:
    """The signal (POSIX) or fault (Windows) that ended a process; None when it exited by itself."""
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    if os.name == "nt" and returncode >= 0xC0000000:
        return WINDOWS_FAULTS.get(returncode, f"fault {returncode:#x}")
    return None


def die_quietly() -> None:
    """For a child: no core file, no crash dialogue; the parent reports the crash."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def end_with_parent() -> None:
    """For a child that reads nothing: end when the parent does, if that holds a pipe to standard input open."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, name="borealis-gguf parent", daemon=True).start()


class _Pipe(io.FileIO):
    """A pipe whose `write` writes all, also where the process is stopped and resumed (Ctrl-Z) in the middle."""

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def private_stdout() -> IO[bytes]:
    """For a child: its pipe to the parent. From now on standard output goes to standard error, for native code too."""
    pipe = _Pipe(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe
