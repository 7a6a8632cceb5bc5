"""Small runs of the product, each with one failing call of the system: run as a script under fault_shim.c.

    LD_PRELOAD=fault_shim.so python -m tests.helpers.fault_runs FOLDER

FOLDER is empty. Every call that a run makes about a file there fails once in each way that such a call can fail.
Prints one JSON object: for each run, its calls, the cases tried, and the cases that ended badly.
"""

import ctypes
import errno
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from borealis_gguf import FilePlan, execute, plan_convert, plan_quantize
from borealis_gguf.errors import BorealisError

from .checkpoints import MINIATURES
from .imatrices import write_imatrix

SHORT = -1
TRANSFERS = ("read", "write", "pread", "pread64", "pwrite", "pwrite64")
FAULTS = {
    "EIO": (errno.EIO, None),
    "ENOSPC": (errno.ENOSPC, ("write", "pwrite", "pwrite64", "ftruncate64", "fallocate", "fsync", "create")),
    "EMFILE": (errno.EMFILE, ("open", "create")),
    "EINTR": (errno.EINTR, TRANSFERS),
    "short": (SHORT, TRANSFERS),
}
"""For each fault: its number, and the calls that can have it (None: all)."""

RETRIED = ("EINTR", "short")
"""Faults that a caller can repair: the run must end well."""

Run = Callable[[], Sequence[FilePlan]]


class Shim:
    """The preloaded library."""

    def __init__(self, folder: Path) -> None:
        self.library, self.folder = ctypes.CDLL(None), str(folder).encode()
        self.library.fault_name.restype = ctypes.c_char_p
        self.library.fault_name.argtypes = (ctypes.c_long,)
        self.library.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_int)

    def arm(self, name: str = "", n: int = 0, fault: int = 0) -> None:
        """Have the n-th call of this name fail; 0: none. Calls are counted anew."""
        self.library.fault_arm(self.folder, name.encode(), n, fault)

    def calls(self) -> list[str]:
        """The names of the calls since `arm`."""
        return [self.library.fault_name(n).decode() for n in range(1, self.library.fault_calls() + 1)]

    def disarm(self) -> None:
        self.library.fault_arm(b"", b"", 0, 0)


def runs(inputs: Path, outputs: Path) -> dict[str, Run]:
    checkpoint = next(m for m in MINIATURES if m.name == "seeing-f16").write(inputs)
    gguf = execute([plan_convert(checkpoint, inputs / "source.gguf", outtype="bf16")], check=False)[0].path
    imatrix = write_imatrix(inputs / "imatrix.gguf", checkpoint)

    def convert() -> Sequence[FilePlan]:
        plans = [plan_convert(checkpoint, outputs / "converted.gguf", outtype="f16", card=False)]
        execute(plans, jobs=1, check=False)
        return plans

    def quantize() -> Sequence[FilePlan]:
        plans = plan_quantize(gguf, ["Q8_0", "Q4_0"], outputs, imatrix=imatrix)
        execute(plans, jobs=1)
        return plans

    return {"convert": convert, "quantize and check": quantize}


def try_all(name: str, run: Run, shim: Shim, outputs: Path) -> dict[str, object]:
    """Every call of `run` with every fault."""
    expected = {plan.path.name: plan.path.read_bytes() for plan in run()}
    clear(outputs)
    shim.arm()
    run()
    calls = shim.calls()
    shim.disarm()
    cases = [
        (called, n, fault)
        for fault, (_, names) in FAULTS.items()
        for called, times in Counter(calls).items()
        if names is None or called in names
        for n in range(1, times + 1)
    ]
    bad = []
    for called, n, fault in cases:
        clear(outputs)
        before = descriptors()
        shim.arm(called, n, FAULTS[fault][0])
        error = failure(run)
        shim.disarm()
        gc.collect()
        if problem := judge(error, called, fault, outputs, expected, descriptors() - before):
            bad.append(f"{name}: {called} {n}, {fault}: {problem}")
    return {"calls": len(calls), "tried": len(cases), "bad": bad}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def failure(run: Run) -> BaseException | None:
    try:
        run()
    except BaseException as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None  # their frames would keep files open
        return error
    return None


def judge(
    error: BaseException | None, called: str, fault: str, outputs: Path, expected: dict[str, bytes], leak: int
) -> str:
    """What is wrong with how a run ended; empty when nothing is."""
    if error is not None and not isinstance(error, BorealisError):
        return f"a bare {type(error).__name__}: {error}"
    if error is not None and ("\n" in str(error) or not str(error).startswith("/")):
        return f"not one line that begins with a file: {error}"
    if error is not None and fault in RETRIED:
        return f"failed: {error}"
    found = {path.name: path.read_bytes() for path in outputs.iterdir()}
    if torn := [name for name, data in found.items() if name in expected and data != expected[name]]:
        return f"torn: {torn}"
    if error is None and (missing := expected.keys() - found.keys()):
        return f"said to be well without {sorted(missing)}"
    rest = [name for name in found if name not in expected and not name.endswith(".lock")]  # an empty file
    if rest and called not in ("unlink", "rename"):
        return f"left {rest} behind after {error}"
    return f"{leak} descriptors leak" if leak > 0 else ""


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def main() -> None:
    folder = Path(sys.argv[1])
    inputs, outputs = folder / "in", folder / "out"
    inputs.mkdir()
    outputs.mkdir()
    shim = Shim(folder)
    every = {name: try_all(name, run, shim, outputs) for name, run in runs(inputs, outputs).items()}
    print(json.dumps(every))


if __name__ == "__main__":
    main()
