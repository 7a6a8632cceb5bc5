"""Small files appear whole or not at all, in the place of a link and not through it; killed runs leave nothing."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borealis_gguf.atomic_file import PRIVATE, write_file, write_if_absent
from borealis_gguf.errors import BorealisError, InvalidInput

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and signals of POSIX")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@POSIX
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_is_replaced_and_never_written_through(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    other, path = tmp_path / "authorized_keys", tmp_path / "Modelfile"
    other.write_text("kept")
    link(other, path)
    write_file(path, [b"new"])
    assert (other.read_text(), path.read_text()) == ("kept", "new")
    assert not path.is_symlink() and sorted(names(tmp_path)) == ["Modelfile", "authorized_keys"]


@POSIX
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a device", "folder"])
def test_what_is_no_regular_file_stays(kind: str, tmp_path: Path) -> None:
    import socket

    path = tmp_path / "Modelfile"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.relpath(path))
        listener.close()
    elif kind == "device":
        path = Path(os.devnull)
    elif kind == "link to a device":
        path.symlink_to(os.devnull)
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(InvalidInput, match="a folder, device or pipe"):
        write_file(path, [b"new"])
    assert os.path.samestat(before, path.lstat())


@POSIX
def test_modes_are_those_of_other_programs_or_private(tmp_path: Path) -> None:
    write_file(tmp_path / "private", [b"x"], PRIVATE)
    write_file(tmp_path / "plain", [b"x"])
    (tmp_path / "expected").write_bytes(b"x")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "plain", "expected")}
    assert modes["private"] == 0o600 and modes["plain"] == modes["expected"]


def test_a_fault_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(BorealisError, match=r"a\.state: cannot be written \(No space left on device\)"):
        write_file(path, parts())
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.state"]
    with pytest.raises(BorealisError, match="cannot be written"):
        write_file(tmp_path / "none" / "a.state", [b""])
    with pytest.raises(BorealisError, match="cannot be written"):
        write_file(tmp_path / ("x" * 1000), [b""])


WAITS = """
import sys, time
from pathlib import Path
from borealis_gguf.atomic_file import write_file
def parts():
    yield b"half"
    print("writing", flush=True)
    time.sleep(60)
write_file(Path(sys.argv[1]), parts())
"""


@POSIX
def test_a_killed_run_is_cleaned_up_after_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    with subprocess.Popen([sys.executable, "-c", WAITS, path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            (half,) = tmp_path.iterdir()
            write_file(path, [b"other"])
            assert sorted(tmp_path.iterdir()) == sorted([half, path])
        finally:
            process.send_signal(signal.SIGKILL)
    write_file(path, [b"next"])
    assert names(tmp_path) == ["a.state"] and path.read_bytes() == b"next"


def test_the_first_of_several_writers_gives_the_file(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_if_absent(tmp_path / "key", [content])
    assert (tmp_path / "key").read_bytes() == b"first" and names(tmp_path) == ["key"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to" if os.name != "nt" else "rename", refuse)
    for content in (b"first", b"second"):
        write_if_absent(tmp_path / "key", [content])
    assert (tmp_path / "key").read_bytes() == b"first" and names(tmp_path) == ["key"]
