"""docs/architecture.md names the package's folders and modules as they are; so does the configuration around them."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from .helpers.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
TABLE = re.compile(r"^\| `([\w./]+)` \|", re.MULTILINE)
PATH = re.compile(r"`((?:[\w.-]+/)*[\w.-]+(?:/|\.(?:py|toml|md|json|c|h)))`")
TOP = (
    "checkpoint",
    "cli",
    "convert",
    "modelfiles",
    "pipeline",
    "quality",
    "quantize",
    "runtime",
    "tests",
    "benchmarks",
)
ELSEWHERE = {"convert_hf_to_gguf.py", "foo.py"}
"""A file of llama.cpp, and one that CONTRIBUTING.md makes up."""


def packages() -> set[str]:
    """The folders of the package, from pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {name.replace(".", "/").removeprefix("borealis_gguf").removeprefix("/") or "." for name in
            settings["tool"]["setuptools"]["packages"]}  # fmt: skip


def test_every_folder_of_the_package_has_one_line() -> None:
    listed = TABLE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(f"{name}/" if name != "." else "." for name in packages())


def test_every_folder_with_modules_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT) for top in TOP[:8] for path in (ROOT / top).rglob("*.py")}
    data = {"runtime/pyinstaller/rthooks", "runtime/page"}  # files that PyInstaller or a browser runs
    assert {folder.as_posix() for folder in folders} - data == packages() - data - {"."}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in PATH.findall(text):
        if Path(path).name in ELSEWHERE:
            continue
        if path.split("/")[0] in TOP or path.endswith((".py", ".toml")):
            assert (ROOT / path).exists() or any(True for top in TOP for _ in (ROOT / top).rglob(path)), path


def test_workflows_are_yaml_and_name_what_exists() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) >= 6
    for file in files:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert document, file
        for action in re.findall(r"uses: \./(\S+)", file.read_text(encoding="utf-8")):
            assert (ROOT / action / "action.yml").is_file()
        for module in re.findall(r"python -m (tests\.\S+)", file.read_text(encoding="utf-8")):
            assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]


def test_constraints_pin_the_tools() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert pins >= {"ruff", "pyright", "import-linter", "pytest", "hypothesis", "setuptools"}


def test_only_the_pipeline_makes_headers_of_gguf_files() -> None:
    """Beside it, the CPU probe makes the tiny model that it loads, with the gguf package's writer."""
    modules = [path for top in TOP[:8] for path in (ROOT / top).rglob("*.py")] + list(ROOT.glob("*.py"))
    makes = [path for path in modules if re.search(r"\bGGUF_MAGIC\b|\bGGUFWriter\(", path.read_text(encoding="utf-8"))]
    found = sorted(path.relative_to(ROOT).as_posix() for path in makes)
    assert found == ["pipeline/layout.py", "runtime/fitting/cpu_probe.py"]
