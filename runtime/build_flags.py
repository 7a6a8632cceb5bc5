"""Prints what CMAKE_ARGS should be when llama-cpp-python is built on this machine. Needs nothing but Python.

    CMAKE_ARGS="$(python3 runtime/build_flags.py)" pip install llama-cpp-python

GCC before 14 (and before the point releases that took over its repair) reads only the first 8 of the 64 bytes of an
AMX tile configuration, as far as its optimiser knows, and drops the stores to the others. llama.cpp built so for a CPU
with AMX dies with SIGSEGV in the first decode of any quantized model. The same compiler without AMX is sound, so AMX is
switched off where, and only where, CPU and compiler are such. What CMAKE_ARGS already held comes first.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
HEADER = "#include <immintrin.h>\n"
FAULTY_OPERAND = '"m" (*((const void **)'
"""How the faulty header hands the configuration to `ldtilecfg`: as one pointer, 8 bytes."""


def cpu_has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether `-march=native` means AMX here. Only Linux on x86-64 says yes: other systems never enable it."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not cpuinfo.exists():
        return False
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "amx_tile" in flags.split()


def compiler_drops_tiles(compiler: str) -> bool:
    """Whether this compiler's own header has the fault. False when there is no such compiler or it knows no AMX."""
    command = [*compiler.split(), "-mamx-tile", "-E", "-x", "c", "-"]
    try:
        done = subprocess.run(command, input=HEADER, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and FAULTY_OPERAND in done.stdout


def cmake_args(has_amx: bool, environ: Mapping[str, str]) -> str:
    """The value for CMAKE_ARGS: what it was, and AMX switched off if `has_amx` and either compiler needs it."""
    before = environ.get("CMAKE_ARGS", "")
    compilers = (environ.get("CC") or "cc", environ.get("CXX") or "c++")
    if not has_amx or not any(map(compiler_drops_tiles, compilers)):
        return before
    pairs = (("CMAKE_C_FLAGS", "CFLAGS"), ("CMAKE_CXX_FLAGS", "CXXFLAGS"))
    # Setting CMAKE_C_FLAGS hides CFLAGS from CMake, so they are carried over.
    values = [(name, f"{environ.get(flags, '')} {NO_AMX}".strip()) for name, flags in pairs]
    ours = [f"-D{name}='{value}'" for name, value in values]
    return " ".join([before, *ours]).strip()


if __name__ == "__main__":
    sys.stdout.write(cmake_args(cpu_has_amx(), os.environ) + "\n")
