"""Builds the kernels with the address and undefined-behaviour sanitizers and runs them, as a plain script.

Needs GCC or Clang (CC, default cc) with their sanitizer libraries, nothing of Python's packages. About a minute.
"""

import os
import platform
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "quantize" / "kernels"
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def units() -> list[tuple[Path, str, list[str]]]:
    """What to compile: source, a name for its instruction set, and flags as setup.py has them (its call left out)."""
    with patch("setuptools.setup"):
        build = runpy.run_path(str(ROOT / "setup.py"))
    x86 = build["X86_ISAS"] if platform.machine().lower() in ("x86_64", "amd64") else {}
    strict = [flag for flag in build["STRICT"] if flag != "-O3"]
    once = [ROOT / source for source in build["ONCE"]]
    vectors = [source for source in sorted(KERNELS.glob("*.c")) if source not in once]
    result = [(source, isa, strict + flags) for isa, flags in {"baseline": [], **x86}.items() for source in vectors]
    known = [f"-DHAVE_{isa.upper()}" for isa in x86]
    driver = ROOT / "tests" / "sanitize_kernels.c"
    return result + [(source, "once", strict + known) for source in [*once, driver]]


def main() -> int:
    cc = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory() as folder:

        def build(unit: tuple[Path, str, list[str]]) -> str:
            source, name, unit_flags = unit
            target = str(Path(folder, f"{source.stem}.{name}.o"))
            subprocess.run([cc, *SANITIZE, *unit_flags, "-c", str(source), "-o", target], check=True)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(build, units()))
        program = str(Path(folder, "sanitize_kernels"))
        subprocess.run([cc, *SANITIZE, *objects, "-o", program, "-lm"], check=True)
        return subprocess.run([program]).returncode


if __name__ == "__main__":
    sys.exit(main())
