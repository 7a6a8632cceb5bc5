"""Builds the kernels with the address and undefined-behaviour sanitizers and runs them, as a plain script.

On x86 the portable vectors that other machines take are built as well, and their bytes compared with the others'.
Needs GCC or Clang (CC, default cc) with their sanitizer libraries, nothing of Python's packages. Two minutes.

For another machine give its compiler and an emulator; its ordinary bytes are those of x86, see sanitize_kernels.c:
CC="aarch64-linux-gnu-gcc -static" RUN=qemu-aarch64 SANITIZE=-O2 python -m tests.quantize.sanitize_kernels
"""

import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..helpers.kernel_build import KERNELS, ROOT, settings

CHECKS = "address,undefined,float-cast-overflow"
DEFAULT = f"-g1 -O1 -fsanitize={CHECKS} -fno-sanitize-recover=all -fno-omit-frame-pointer"
CC = shlex.split(os.environ.get("CC", "cc"))
RUN = shlex.split(os.environ.get("RUN", ""))
SANITIZE = shlex.split(os.environ.get("SANITIZE", DEFAULT))

Unit = tuple[Path, str, list[str]]
"""What to compile: source, a name for its flags, and the flags."""


def programs() -> dict[str, list[Unit]]:
    """The units of each program, with setup.py's flags (its call left out): all instruction sets, and the portable."""
    build = settings()
    x86 = build["X86_ISAS"] if _machine().startswith("x86_64") else {}
    strict = [flag for flag in build["STRICT"] if flag not in ("-O3", "-g0")]
    once = [ROOT / source for source in build["ONCE"]]
    vectors = [source for source in sorted(KERNELS.glob("*.c")) if source not in once]
    once.append(Path(__file__).with_suffix(".c"))

    def units(isas: dict[str, list[str]], name: str, defines: list[str]) -> list[Unit]:
        compiled = [(source, isa, strict + flags) for isa, flags in isas.items() for source in vectors]
        return compiled + [(source, name, strict + defines) for source in once]

    every = units({"baseline": [], **x86}, "once", [f"-DHAVE_{isa.upper()}" for isa in x86])
    portable = units({"portable": ["-DBOREALIS_PORTABLE"]}, "alone", [])
    return {"every": every, "portable": portable} if x86 else {"every": every}


def _machine() -> str:
    return subprocess.run([*CC, "-dumpmachine"], check=True, capture_output=True, text=True).stdout


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:

        def build(unit: Unit) -> str:
            source, name, flags = unit
            target = str(Path(folder, f"{source.stem}.{name}.o"))
            subprocess.run([*CC, *SANITIZE, *flags, "-c", str(source), "-o", target], check=True)
            return target

        last_lines = {}
        for name, units in programs().items():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(build, units))
            program = str(Path(folder, name))
            subprocess.run([*CC, *SANITIZE, *objects, "-o", program, "-lm"], check=True)
            done = subprocess.run([*RUN, program], stdout=subprocess.PIPE, text=True)
            print(f"{name}: {done.stdout}", end="", flush=True)
            if done.returncode:
                return 1
            last_lines[name] = done.stdout.splitlines()[-1]
    if len(set(last_lines.values())) > 1:
        print("the portable vectors give other bytes than x86's instructions")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
