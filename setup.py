"""Builds the native encoders (quantize/kernels) where a GCC or Clang is at hand; the install succeeds without them.

The same sources are compiled once per instruction set, each into objects of its own, and linked into one library
beside quantize/encoders/native.py, which loads it with ctypes. So the library does not depend on Python: it is called
`_kernels.so`, and wheels are tagged `py3-none-PLATFORM`. Everything else stands in pyproject.toml.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

KERNELS = Path("quantize", "kernels")
ONCE = [str(KERNELS / "dispatch.c"), str(KERNELS / "lattice.c")]
"""Sources without vectors, compiled a single time."""

# Plain IEEE arithmetic: no contraction, no reassociation; errno and the exception flags are nobody's business.
STRICT = [
    "-O3",
    "-g0",
    "-std=gnu11",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
X86_ISAS = {
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": ["-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}


class BuildKernels(build_ext):
    """Compiles the kernels per instruction set. The extension is optional: setuptools reports a failure and goes on."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the suffix that names a CPython version."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type != "unix":
            raise CompileError("the native encoders need GCC or Clang; ggml's own encoders will be used")
        if self.inplace or self.editable_mode:  # builds of other names, which native.py might load instead
            for other in Path("quantize", "encoders").glob("_kernels.*"):
                other.unlink()
        sources = [source for source in ext.sources if source not in ONCE]
        objects = self._compile(sources, "baseline", [])
        defines = []
        if platform.machine().lower() in ("x86_64", "amd64"):
            for isa, flags in X86_ISAS.items():
                try:
                    objects += self._compile(sources, isa, flags)
                    defines.append(f"-DHAVE_{isa.upper()}")
                except CompileError as error:
                    self.warn(f"no {isa} encoders: {error}")
        objects += self._compile(ONCE, "once", defines)
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=["m"])

    def _compile(self, sources: list[str], isa: str, flags: list[str]) -> list[str]:
        folder = Path(self.build_temp, isa)
        for source in sources:  # made here, because threads would race to make it
            Path(folder, source).parent.mkdir(parents=True, exist_ok=True)

        def compile_one(source: str) -> list[str]:
            options = [*STRICT, *flags]
            return self.compiler.compile([source], output_dir=str(folder), extra_postargs=options, depends=HEADERS)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [made for objects in pool.map(compile_one, sources) for made in objects]


class Modules(build_py):
    """The package without this file, which lies in its folder."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


class Wheel(bdist_wheel):
    """A wheel for every Python 3 of the platform it is built on."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


HEADERS = sorted(map(str, KERNELS.glob("*.h")))
SOURCES = sorted(map(str, KERNELS.glob("*.c")))

setup(
    ext_modules=[Extension("borealis_gguf.quantize.encoders._kernels", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": BuildKernels, "build_py": Modules, "bdist_wheel": Wheel},
)
