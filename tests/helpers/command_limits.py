"""Runs commands of the program one after another, and tells as JSON what each printed, took and changed, and the peak.

Run as a process of its own, so that the peak is that of these commands: python command_limits.py FOLDER < JSON, a list
of argument lists. It stands in an empty folder inside FOLDER, as do the user's home and the temporary files.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Any

PLACES = {"HOME": "home", "TMPDIR": "tmp", "BOREALIS_GGUF_CACHE": "cache", "HF_HOME": "hf"}
NETWORK: list[str] = []


def run_commands(folder: Path, commands: list[list[str]]) -> tuple[list[dict[str, Any]], int]:
    """What each command gave, and the memory in bytes that all of them took at most, beyond the empty program's."""
    places = {name: str(folder / place) for name, place in PLACES.items()}
    for place in (*places.values(), folder / "cwd"):
        Path(place).mkdir()
    path = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, __file__, str(folder)], cwd=folder / "cwd", input=json.dumps(commands), capture_output=True,
        env={**os.environ, **places, "PYTHONPATH": path, "PYTHONUTF8": "1"}, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    return answer["results"], answer["peak"]


def processor_seconds() -> float:
    """Of this process and of its children that have ended: how busy the machine is does not matter."""
    return sum(os.times()[:4])


def children_memory() -> int:
    """The largest child's peak in bytes; Windows does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def captured(stream: Any) -> Iterator[Any]:
    """What goes to a standard stream, of native code too, goes into a file."""
    stream.flush()
    kept = os.dup(stream.fileno())
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), stream.fileno())
        try:
            yield file
        finally:
            stream.flush()
            os.dup2(kept, stream.fileno())
            os.close(kept)


def read(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every path inside `folder`, with what a write would change; folders are known by what is in them."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path): (0,) if S_ISDIR(at.st_mode) else (at.st_mode, at.st_size, at.st_mtime_ns) for path, at in found}


def run(args: list[str], folder: Path) -> dict[str, Any]:
    """One command, as the shell would run it."""
    from borealis_gguf.cli.main import main

    sys.argv = ["borealis-gguf", *args]
    NETWORK.clear()
    before, begun, code = listing(folder), processor_seconds(), 0
    with captured(sys.stdout) as out, captured(sys.stderr) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        seconds = processor_seconds() - begun
        stdout, stderr = read(out), read(err)
    after = listing(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    outcome = {"code": code, "stdout": stdout, "stderr": stderr, "changed": changed}
    return outcome | {"seconds": seconds, "network": list(NETWORK)}


def watch_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        NETWORK.append(f"{event} {args[-1]}")


if __name__ == "__main__":
    from memory_limits import peak_memory

    run(["--version"], Path(sys.argv[1]))
    base = peak_memory()
    sys.addaudithook(watch_network)
    root = Path(sys.argv[1])
    results = [run(args, root) for args in json.load(sys.stdin)]
    print(json.dumps({"results": results, "peak": max(peak_memory() - base, 0) + children_memory()}))
