"""Builds the kernels with the address and undefined-behaviour sanitizers and runs them.

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


def compiler_flags() -> dict[str, list[str]]:
    """Flags per instruction set, as setup.py has them (its call of setup() left out)."""
    with patch("setuptools.setup"):
        build = runpy.run_path(str(ROOT / "setup.py"))
    x86 = build["X86_ISAS"] if platform.machine().lower() in ("x86_64", "amd64") else {}
    strict = [flag for flag in build["STRICT"] if flag != "-O3"]
    return {isa: strict + flags for isa, flags in {"baseline": [], **x86}.items()}


def main() -> int:
    cc = os.environ.get("CC", "cc")
    flags = compiler_flags()
    with tempfile.TemporaryDirectory() as folder:
        units = [
            (source, isa, isa_flags)
            for isa, isa_flags in flags.items()
            for source in sorted(KERNELS.glob("*.c"))
            if source.name != "dispatch.c"
        ]
        known = [f"-DHAVE_{isa.upper()}" for isa in flags if isa != "baseline"]
        units.append((KERNELS / "dispatch.c", "dispatch", flags["baseline"] + known))
        units.append((ROOT / "tests" / "sanitize_kernels.c", "driver", flags["baseline"]))

        def build(unit: tuple[Path, str, list[str]]) -> str:
            source, name, unit_flags = unit
            target = str(Path(folder, f"{source.stem}.{name}.o"))
            subprocess.run([cc, *SANITIZE, *unit_flags, "-c", str(source), "-o", target], check=True)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(build, units))
        program = str(Path(folder, "sanitize_kernels"))
        subprocess.run([cc, *SANITIZE, *objects, "-o", program, "-lm"], check=True)
        return subprocess.run([program]).returncode


if __name__ == "__main__":
    sys.exit(main())
