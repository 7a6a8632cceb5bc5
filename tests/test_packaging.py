"""What is built for others: a source distribution from which the tests run, and a wheel made from it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import borealis_gguf

from .helpers.paths import ROOT

VERSION = borealis_gguf.__version__
NOT_SOURCE = shutil.ignore_patterns(
    *(
        ".git",
        ".venv",
        "build",
        "dist",
        "demo",
        "*.egg-info",
        ".*_cache",
        ".hypothesis",
        "__pycache__",
        "*.so",
        "*.gguf",
    )
)


def build(kind: str, folder: Path) -> Path:
    """The file that setuptools builds of the project in `folder`, as pip has it do, without a place of its own."""
    code = f"import setuptools.build_meta as b; print(); print(b.build_{kind}('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "clone", ignore=NOT_SOURCE))
    return build("sdist", folder)


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """Of the unpacked source: so that nothing is missing there. The kernels are compiled, which takes a minute."""
    return build("wheel", unpacked)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_is_whole(sdist: Path, unpacked: Path) -> None:
    assert sdist.name == f"borealis_gguf-{VERSION}.tar.gz"
    clone = files(sdist.parents[1])
    made = {name for name in clone if name.startswith("dist/") or ".egg-info/" in name}
    assert clone - made - files(unpacked) == set()


def test_its_tests_are_found(unpacked: Path) -> None:
    """Every test module imports there, and finds the data it reads on the way."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path and Path(path) != ROOT)}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=unpacked, env=env, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "error" not in done.stdout.splitlines()[-1]


def test_the_wheel_is_for_every_python_of_a_platform(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("borealis_gguf", VERSION, "py3", "none")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        meta = archive.read(f"borealis_gguf-{VERSION}.dist-info/WHEEL").decode()
    assert f"Tag: py3-none-{platform}" in meta and "Root-Is-Purelib: false" in meta
    assert {name.split("/")[0] for name in names} == {"borealis_gguf", f"borealis_gguf-{VERSION}.dist-info"}
    if sys.platform != "win32":
        assert [name for name in names if "_kernels" in name] == ["borealis_gguf/quantize/encoders/_kernels.so"]
    assert "borealis_gguf/setup.py" not in names
    assert names >= {f"borealis_gguf/{file}" for file in ("api.py", "py.typed", "runtime/page/index.html")}
    assert not [name for name in names if name.startswith(("borealis_gguf/tests", "borealis_gguf/benchmarks"))]


def test_the_wheel_has_every_module(wheel: Path, unpacked: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = [path for path in unpacked.iterdir() if (path / "__init__.py").is_file() and path.name != "tests"]
    modules = {path.relative_to(unpacked).as_posix() for folder in folders for path in folder.rglob("*.py")}
    assert len(modules) > 150
    assert {f"borealis_gguf/{name}" for name in modules} - names == set()


def test_the_installed_wheel_tells_its_version(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import borealis_gguf as b; from borealis_gguf.cli.main import main; print(b.__file__); main()"
    others = [path for path in sys.path if path and Path(path) != ROOT]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *others])}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        str(tmp_path / "borealis_gguf" / "__init__.py"), f"borealis-gguf, version {VERSION}"
    ]  # fmt: skip


def test_the_version_has_one_home() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{VERSION}"\n' in project, "install the package again"
    assert f"\n## [{VERSION}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
