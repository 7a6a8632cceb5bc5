"""Where the system refuses: names that are too long, loops of links, a folder that is gone, closed streams, few files.

One line, no traceback, and an exit code that is not 0.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from borealis_gguf import BorealisError, api

from .test_cli import BOOT, run

LONG = "x" * 1000
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links, limits and shells of POSIX")


def one_line(done: "subprocess.CompletedProcess[str]", *codes: int) -> str:
    assert done.returncode in (codes or (2,)), done.stderr[-300:]
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: "), done.stderr[-300:]
    return done.stderr


@pytest.mark.parametrize("args", [
    ("convert", "NANO", "-o", f"{LONG}.gguf"),
    ("convert", "NANO", "-o", f"{LONG}/x.gguf"),
    ("convert", "NANO", "-o", f"{'x' * 250}.gguf"),
    ("convert", "NANO", "--lora", LONG),
    ("convert", LONG),
    ("quantize", "Q8_0", "-m", "NANO", "-o", LONG),
    ("quantize", "Q8_0", "Q4_K_M", "-m", "NANO", "-o", LONG),
    ("quantize", "Q8_0", "-m", "NANO", "--imatrix", LONG),
    ("convert-lora", LONG, "--base", "NANO"),
    ("inspect", LONG),
    ("modelfile", "MODEL", "-o", LONG),
    ("check", "MODEL", "--against", LONG),
    ("check", "MODEL", "--against", "NANO", "--text", LONG),
    ("run", LONG, "Hei"),
    ("run", "MODEL", "Hei", "--image", LONG),
    ("run", "MODEL", "Hei", "--lora", LONG),
    ("run", "MODEL", "Hei", "--mmproj", LONG),
    ("serve", LONG),
])  # fmt: skip
def test_long_names(args: tuple[str, ...], nano: Path, model: Path) -> None:
    given = [str({"NANO": nano, "MODEL": model}.get(arg, arg)) for arg in args]
    one_line(run(*given, cwd=model.parent), 1, 2)
    assert [path.name for path in model.parent.iterdir()] == [model.name]


@pytest.fixture
def model(nano_q8: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(nano_q8.read_bytes())
    return path


def test_long_names_are_errors_of_the_library_too(nano: Path, tmp_path: Path) -> None:
    for name in (f"{LONG}.gguf", f"{LONG}/x.gguf", f"{'x' * 250}.gguf"):
        with pytest.raises(BorealisError):
            api.execute([api.plan_convert(nano, tmp_path / name)])
    assert list(tmp_path.iterdir()) == []


@POSIX
@pytest.mark.parametrize("args", [
    ("convert", "loop"),
    ("convert", "NANO", "-o", "loop/x.gguf"),
    ("convert", "NANO", "--lora", "loop"),
    ("quantize", "Q8_0", "Q4_K_M", "-m", "NANO", "-o", "loop"),
    ("quantize", "Q8_0", "-m", "NANO", "--imatrix", "loop"),
    ("convert-lora", "loop", "--base", "NANO"),
    ("inspect", "loop"),
    ("modelfile", "loop"),
    ("modelfile", "MODEL", "-o", "loop/Modelfile"),
    ("modelfile", "MODEL", "--mmproj", "loop/x.gguf"),
    ("check", "MODEL", "--against", "loop"),
    ("check", "MODEL", "--against", "NANO", "--text", "loop"),
    ("run", "loop", "Hei"),
    ("run", "MODEL", "Hei", "--image", "loop"),
    ("run", "MODEL", "Hei", "--lora", "loop"),
])  # fmt: skip
def test_loops_of_links(args: tuple[str, ...], nano: Path, model: Path) -> None:
    (model.parent / "loop").symlink_to("pool")
    (model.parent / "pool").symlink_to("loop")
    given = [str({"NANO": nano, "MODEL": model}.get(arg, arg)) for arg in args]
    done = run(*given, cwd=model.parent)
    if args[-1] == "loop/Modelfile":
        assert done.returncode == 2 and "lies beside its model" in done.stderr  # a message on how to use it
    else:
        one_line(done, 1, 2)


@POSIX
def test_a_loop_of_links_is_replaced_as_any_link(nano: Path, model: Path) -> None:
    for name, args in (("a.gguf", ("convert", nano)), ("b", ("modelfile", model))):
        (model.parent / name).symlink_to(name)
        assert run(*args, "-o", model.parent / name).returncode == 0
        assert not (model.parent / name).is_symlink()


IN_A_FOLDER_THAT_IS_GONE = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); " + BOOT


@POSIX
@pytest.mark.parametrize("args", [
    ("convert",), ("convert", "NANO"), ("convert", "NANO", "-o", "x.gguf"), ("quantize", "Q8_0"),
    ("quantize", "Q8_0", "-m", "NANO"), ("inspect", "m.gguf"), ("run", "m.gguf", "Hei"), ("chat", "m.gguf"),
    ("modelfile", "m.gguf"), ("modelfile", "MODEL", "-o", "Modelfile"), ("convert-lora", "x", "--base", "NANO"),
    ("check", "m.gguf", "--against", "NANO"), ("run", "MODEL", "Hei", "--image", "x.png"),
])  # fmt: skip
def test_a_working_directory_that_is_gone(args: tuple[str, ...], nano: Path, model: Path) -> None:
    given = [str({"NANO": nano, "MODEL": model}.get(arg, arg)) for arg in args]
    done = started(IN_A_FOLDER_THAT_IS_GONE, *given, cwd=model.parent)
    one_line(done, 1, 2)


def started(boot: str, *args: str, cwd: Path, shell: str = "") -> "subprocess.CompletedProcess[str]":
    """The program, started by a shell that does something first; PYTHONPATH lets a moved Python find the package."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", boot, *args]
    if shell:
        command = ["bash", "-c", shell, "bash", *command]
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120,
        check=False,
    )  # fmt: skip


@POSIX
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_cost_no_file(closed: str, nano: Path, tmp_path: Path) -> None:
    """No file takes their place, in which messages would then end up."""
    expected = api.plan_convert(nano, tmp_path / "expected.gguf")
    api.execute([expected])
    done = started(BOOT, "convert", str(nano), "-o", "x.gguf", cwd=tmp_path, shell=f'"$@" {closed}')
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.gguf").read_bytes() == expected.path.read_bytes()


@POSIX
@pytest.mark.parametrize("args", [("run", "MODEL"), ("chat", "MODEL")])
def test_closed_standard_input(args: tuple[str, ...], model: Path) -> None:
    done = started(BOOT, args[0], str(model), cwd=model.parent, shell='"$@" <&-')
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if args[0] == "run" else 0)


@POSIX
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
@pytest.mark.parametrize("command", ["convert", "inspect", "run", "--help"])
def test_closed_standard_output(command: str, closed: str, nano: Path, model: Path) -> None:
    args = {"convert": [str(nano), "-o", "x.gguf"], "inspect": [str(model)], "run": [str(model), "Hei"]}
    done = started(BOOT, command, *args.get(command, []), cwd=model.parent, shell=f'"$@" {closed}')
    assert "standard output is closed" in one_line(done)
    assert not (model.parent / "x.gguf").exists()


@POSIX
def test_all_streams_closed(model: Path) -> None:
    done = started(BOOT, "inspect", str(model), cwd=model.parent, shell='"$@" <&- >&- 2>&-')
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("args", [("inspect", "MODEL"), ("modelfile", "MODEL"), ("devices",), ("--help",)])
def test_standard_output_on_a_full_disk(args: tuple[str, ...], model: Path) -> None:
    given = [str(model) if arg == "MODEL" else arg for arg in args]
    done = started(BOOT, *given, cwd=model.parent, shell='"$@" >/dev/full')
    if args == ("devices",):
        assert done.returncode == 1 and "Traceback" not in done.stderr
    else:
        assert "standard output: No space left on device" in one_line(done, 1)


@POSIX
@pytest.mark.parametrize("limit", [8, 12, 20])
@pytest.mark.parametrize("command", ["convert", "quantize", "inspect", "run", "check", "modelfile"])
def test_few_open_files(command: str, limit: int, nano: Path, model: Path) -> None:
    """It works, or it says in one line that it cannot; nothing half-written is left."""
    args = {
        "convert": [str(nano), "-o", "x.gguf"], "quantize": ["Q8_0", "-m", str(nano), "-o", "x.gguf"],
        "inspect": [str(model)], "run": [str(model), "Hei", "-n", "1", "-q"],
        "check": [str(model), "--against", str(nano)], "modelfile": [str(model)],
    }  # fmt: skip
    done = started(BOOT, command, *args[command], cwd=model.parent, shell=f'ulimit -n {limit}; "$@"')
    if done.returncode:
        assert "oo many open files" in one_line(done, 1, 2)
        assert not (model.parent / "x.gguf").exists()
    assert [path.name for path in model.parent.iterdir() if "partial" in path.name] == []
