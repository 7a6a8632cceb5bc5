"""The flags llama-cpp-python is built with: AMX off where compiler and CPU make it deadly, nothing anywhere else."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from borealis_gguf.runtime import build_flags
from borealis_gguf.runtime.build_flags import NO_AMX, cmake_args, compiler_drops_tiles, cpu_has_amx

FAULTY = '__asm__ volatile ("ldtilecfg\\t%X0" :: "m" (*((const void **)__config)));'
SOUND = "__builtin_ia32_ldtilecfg (__config);"


def compiler(folder: Path, header: str, returncode: int = 0) -> str:
    """A compiler whose preprocessor prints `header`."""
    path = folder / f"cc{len(list(folder.iterdir()))}.py"
    path.write_text(f"import sys\nsys.stdin.read()\nprint({header!r})\nsys.exit({returncode})\n", encoding="utf-8")
    return f"{sys.executable} {path}"


def test_a_compiler_is_judged_by_its_header(tmp_path: Path) -> None:
    assert compiler_drops_tiles(compiler(tmp_path, FAULTY))
    assert not compiler_drops_tiles(compiler(tmp_path, SOUND))
    assert not compiler_drops_tiles(compiler(tmp_path, FAULTY, returncode=1))  # knows no AMX
    assert not compiler_drops_tiles(str(tmp_path / "no such compiler"))


def test_amx_is_switched_off_for_both_languages(tmp_path: Path) -> None:
    faulty, sound = compiler(tmp_path, FAULTY), compiler(tmp_path, SOUND)
    environ = {"CC": sound, "CXX": faulty, "CMAKE_ARGS": "-DGGML_BLAS=ON", "CFLAGS": "-O2 -g"}
    assert shlex.split(cmake_args(True, environ)) == [
        "-DGGML_BLAS=ON",
        f"-DCMAKE_C_FLAGS=-O2 -g {NO_AMX}",
        f"-DCMAKE_CXX_FLAGS={NO_AMX}",
    ]


def test_nothing_changes_elsewhere(tmp_path: Path) -> None:
    faulty, sound = compiler(tmp_path, FAULTY), compiler(tmp_path, SOUND)
    assert cmake_args(False, {"CC": faulty, "CXX": faulty}) == ""
    assert cmake_args(True, {"CC": sound, "CXX": sound}) == ""
    assert cmake_args(True, {"CC": sound, "CXX": sound, "CMAKE_ARGS": "-DA=1"}) == "-DA=1"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx512f amx_bf16 amx_tile amx_int8", True),
        ("x86_64", "fpu avx512f", False),
        ("aarch64", "amx_tile", False),
    ],
)
def test_the_cpu(machine: str, flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu_has_amx(cpuinfo) is expected
    assert cpu_has_amx(tmp_path / "nothing") is False


def test_it_runs_as_a_plain_file_before_anything_is_installed() -> None:
    environ = {**os.environ, "CMAKE_ARGS": "-DA=1"}
    command = [sys.executable, "-I", build_flags.__file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert done.stdout == cmake_args(cpu_has_amx(), environ) + "\n"
    assert done.stdout.startswith("-DA=1")
