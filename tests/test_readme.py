"""What README.md and docs/ show is run as it stands there, on a miniature of Borealis 4b and a Hub on this machine."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from borealis_gguf import api
from borealis_gguf.cli.main import cli

from .cli.test_cli import BOOT
from .helpers.checkpoints import text_shapes
from .helpers.hub_server import Hub, serve
from .helpers.imatrices import write_imatrix
from .helpers.lora_adapters import ALL_LINEAR, Lora
from .helpers.paths import DATA, ROOT
from .helpers.vision_models import SEEING, TEXT

README = ROOT / "README.md"
DOCUMENTS = [README, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS += [ROOT / "examples" / "desktop" / "README.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")

SHORTER = {
    "bench encoders": ("--seconds", "0.01"),
    "bench run": ("--prompt-tokens", "32", "--tokens", "8", "--repeats", "1", "--threads", "1"),
    "run": ("-n", "20"),
    "chat": ("--context", "128"),
}
"""Options added to a command, so that its test takes less time."""
SILENT = ("modelfile", "chat", "serve")
"""Commands that may leave standard output empty, or are looked at in another way."""
SERVED = "http://127.0.0.1:8080"
OTHERS_TOOLS = ("pip install", ".venv/bin/pip install", "pyinstaller", "git clone", "hf auth login")


def blocks(document: Path, kind: str) -> list[str]:
    return [text for found, text in FENCE.findall(document.read_text(encoding="utf-8")) if found == kind]


def commands(document: Path) -> list[str]:
    """Every line of the document's sh blocks, without its comment."""
    lines = (
        line.partition("    #")[0].partition("  # ")[0].strip()
        for text in blocks(document, "sh")
        for line in text.splitlines()
    )
    return [line for line in lines if line and not line.startswith("#")]


class Desk:
    """A folder with all that the documents name, and a Hub that has NbAiLab/borealis-4b."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder.parent / "hf"), "NO_PROXY": "127.0.0.1,localhost"}
        self.env |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUTF8": "1"}

    def python(self, *args: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *args], cwd=self.folder, env=self.env, input=text, capture_output=True, encoding="utf-8",
            timeout=120, check=False,
        )  # fmt: skip

    @contextmanager
    def server(self, *options: str) -> Iterator[str]:
        """`serve` at a free port; its address."""
        command = [sys.executable, "-c", BOOT, "serve", *options, "--port", "0"]
        command = [option for option in command if option != "--open"]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, encoding="utf-8"
        ) as server:
            try:
                assert server.stdout is not None
                yield server.stdout.readline().split(" at ")[1].split()[0].rstrip("/")
            finally:
                server.terminate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Desk]]:
    """Gives a new copy of the folder for each document."""
    folder = tmp_path_factory.mktemp("documents") / "desk"
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "runtime", folder / "runtime")
    checkpoint = SEEING[0].write(folder).rename(folder / "borealis-4b")
    Lora("safety-lora", {}, dict.fromkeys(ALL_LINEAR, 4), shapes=text_shapes(TEXT)).write(folder)
    api.execute([*api.plan_quantize(checkpoint, ["Q4_K_M", "Q8_0"], folder), api.plan_convert(checkpoint, folder)])
    api.execute(api.plan_quantize(folder / "examples" / "nano-nb-7m", ["Q8_0"], folder / "demo"))
    write_imatrix(folder / "imatrix.gguf", checkpoint)
    shutil.copyfile(DATA / "images" / "turned.jpg", folder / "fjord.jpg")
    (folder / "notat.txt").write_text("Ei bygd ved fjorden.\n", encoding="utf-8")
    (folder / "key.txt").write_text("løyndom\n", encoding="utf-8")
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    with serve(Hub({"NbAiLab/borealis-4b": files})) as hub:
        yield lambda: Desk(Path(shutil.copytree(folder, tmp_path_factory.mktemp("document") / "desk")), hub)


def run_line(desk: Desk, line: str) -> None:
    program, *args = shlex.split(line)
    if program == "borealis-gguf":
        run_command(desk, args)
    elif program == "curl":
        with desk.server("borealis-4b-Q4_K_M.gguf") as url:
            done = subprocess.run(shlex.split(line.replace(SERVED, url)), capture_output=True, text=True, check=True)
        assert '"choices"' in done.stdout, done.stdout
    elif program == "make":
        assert re.search(rf"^{args[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program.endswith("python") and args[0] == "-m":
        assert ROOT.joinpath(*args[1].split(".")).with_suffix(".py").is_file()
    elif program.endswith("python"):
        source = (ROOT / args[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in args if option.startswith("--"))
    else:
        known_to_others(line)


def run_command(desk: Desk, args: list[str]) -> None:
    if args[0] == "serve":
        with desk.server(*args[1:]) as url:
            assert url.startswith("http://127.0.0.1:")
        return
    shorter = SHORTER.get(" ".join(args[:2]), SHORTER.get(args[0], ()))
    done = desk.python("-c", BOOT, *args, *shorter, text="Hei\n/help\n" if args[0] == "chat" else "")
    assert done.returncode == 0, (args, done.stderr)
    assert done.stdout or args[0] == "modelfile", args


def known_to_others(line: str) -> None:
    """Commands of other tools: what they name of ours is there."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert any(tool in line for tool in OTHERS_TOOLS), line
    for extra in re.findall(r"\.\[(\w+)\]", line):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), line
    for pin in re.findall(r"llama-cpp-python==\S+", line):
        assert f'"{pin}"' in project
    for script in re.findall(r"python3 (\S+\.py)", line):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_examples_run(document: Path, desk: Callable[[], Desk]) -> None:
    lines, examples = commands(document), blocks(document, "python")
    here = desk() if lines or examples else None
    for line in lines:
        assert here is not None
        run_line(here, line)
    for code in examples:
        assert here is not None
        with ExitStack() as stack:
            if SERVED in code:
                code = code.replace(SERVED, stack.enter_context(here.server("borealis-4b-Q4_K_M.gguf")))
            done = here.python("-c", code)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.strip()) > 5


def test_what_the_documents_show() -> None:
    """Nothing is lost on the way from a document to its test."""
    shown = {tuple(shlex.split(line)[:2]) for document in DOCUMENTS for line in commands(document)}
    assert shown >= {("borealis-gguf", command) for command in cli.commands} | {("make", "demo"), ("make", "test")}
    assert sum(len(blocks(document, "python")) for document in DOCUMENTS) >= 3


def test_the_modelfile_of_the_readme(desk: Callable[[], Desk]) -> None:
    here = desk()
    (line,) = [line for line in commands(README) if "modelfile" in line]
    run_line(here, line)
    text = (here.folder / "Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./borealis-4b-Q4_K_M.gguf\nFROM ./mmproj-borealis-4b-F16.gguf\n" in text


def test_the_python_example_tells_its_progress(desk: Callable[[], Desk]) -> None:
    (code,) = [code for code in blocks(ROOT / "docs" / "apps.md", "python") if "plan_quantize" in code]
    done = desk().python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stdout
    assert len(done.stdout.split()) > 5


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    text = README.read_bytes()
    assert len(text) <= 5000
    assert {path for path in ROOT.glob("docs/*.md") if f"(docs/{path.name})" not in text.decode()} == set()
