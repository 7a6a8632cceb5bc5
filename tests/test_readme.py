"""What the README shows is run as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .cli.test_cli import BOOT, run
from .helpers.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


SHORTER = {
    "bench encoders": ("--seconds", "0.01"),
    "bench run": ("--prompt-tokens", "32", "--tokens", "8", "--repeats", "1", "--threads", "1"),
    "run": ("-n", "20"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository after `make demo` has begun."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", path / "examples")
    (path / "demo").mkdir()
    return path


def test_everyday_commands_run(folder: Path) -> None:
    (block,) = [text for kind, text in BLOCKS if kind == "sh" and "borealis-gguf inspect" in text]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) >= 8
    for program, *args in commands:
        assert program == "borealis-gguf"
        done = run(*args, *SHORTER.get(" ".join(args[:2]), SHORTER.get(args[0], ())), cwd=folder)
        assert done.returncode == 0, (args, done.stderr)
        assert done.stdout or args[0] == "modelfile"
    assert (folder / "demo" / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./nano-nb-7m-Q8_0.gguf\n")


def test_chat_and_serve_run(folder: Path) -> None:
    """As they stand there, but for the browser and the port."""
    (block,) = [text for kind, text in BLOCKS if kind == "sh" and "borealis-gguf serve" in text]
    chat, serve = (shlex.split(line, comments=True)[1:] for line in block.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", BOOT, *chat],
        cwd=folder,
        input="Hei\n/help\n",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and len(done.stdout) > 1, done.stderr
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "OpenAI" in text]
    options = [*serve, "--port", "0"]
    options.remove("--open")
    with subprocess.Popen(
        [sys.executable, "-c", BOOT, *options], cwd=folder, stdout=subprocess.PIPE, encoding="utf-8"
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split()[0]
            code = code.replace("http://127.0.0.1:8080", url.rstrip("/"))
            client = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=False
            )
        finally:
            server.terminate()
    assert client.returncode == 0, client.stderr
    assert len(client.stdout.strip()) > 5


def test_the_python_example_runs(folder: Path) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "plan_quantize" in text]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stdout
    assert len(done.stdout.split()) > 5


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", targets, re.MULTILINE)
