"""Outputs: nothing that lies in the folder is written to or followed, and a name is given under a lock."""

import os
import shutil
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.atomic_file import hidden_files
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.pipeline.atomic_output import PartialFile, check_outputs
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import FilePlan

from ..helpers.tiny import CODEC, raw_model

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there that users lack")


@pytest.fixture
def plan(tmp_path: Path) -> FilePlan:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    model = raw_model(tmp_path / "in" / "raw", {"token_embd.weight": (64, 256)}, T.F32)
    return lay_out(tmp_path / "out" / "x.gguf", model, [T.Q8_0])


def names(plan: FilePlan) -> list[str]:
    return sorted(path.name for path in plan.path.parent.iterdir())


@LINKS
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", [".x.gguf.partial", ".x.gguf.01234567.partial", ".x.gguf.lock", "x.gguf"])
def test_a_link_in_the_folder_never_leads_to_another_file(plan: FilePlan, tmp_path: Path, name: str, link: Any) -> None:
    other = tmp_path / "in" / "authorized_keys"
    other.write_text("kept")
    link(other, plan.path.parent / name)
    if name == ".x.gguf.lock" and link is os.symlink:
        with pytest.raises(InvalidInput, match=r"x\.gguf: cannot be written"):
            execute([plan], CODEC)
        assert not plan.path.exists()
    else:
        execute([plan], CODEC)
        assert plan.path.stat().st_size == plan.size
        assert not plan.path.is_symlink()
    assert other.read_text() == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFO there")
@pytest.mark.parametrize("name", ["x.gguf", ".x.gguf.lock"])
def test_what_is_no_regular_file_is_refused(plan: FilePlan, name: str) -> None:
    pipe = plan.path.parent / name
    os.mkfifo(pipe)
    with pytest.raises(InvalidInput, match=r"no regular file|and no file"):
        execute([plan], CODEC)
    assert pipe.is_fifo()
    assert names(plan) == [name]


@pytest.mark.parametrize("method", ["publish", "discard"])
def test_the_lock_is_held_until_a_file_has_its_name_or_is_gone(
    plan: FilePlan, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    file = PartialFile(plan)
    file.begin()
    tried: list[Path] = []

    def second_run_first(real: Any) -> Any:
        def run(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self == file.path and not tried:
                tried.append(self)
                with pytest.raises(InvalidInput, match="another run is writing this file"):
                    PartialFile(plan)
            return real(self, *args, **kwargs)

        return run

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, second_run_first(getattr(Path, name)))
    getattr(file, method)()
    assert tried == [file.path]
    assert names(plan) == (["x.gguf"] if method == "publish" else [])
    PartialFile(plan).discard()


def test_a_header_that_the_system_takes_in_parts_is_whole(plan: FilePlan) -> None:
    class Short(FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:7]))

    file = PartialFile(plan)
    whole, file.file = file.file, Short(file.path, "r+b")
    whole.close()
    file.begin()
    assert file.path.read_bytes()[: len(plan.header)] == plan.header
    file.discard()


def test_what_a_killed_run_left_is_counted_as_room_and_removed(plan: FilePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plan.path.parent
    (folder / ".x.gguf.0123abcd.partial").write_bytes(bytes(plan.size))
    kept = [
        "..x.gguf.0123abcd.partial",
        ".x.gguf.0123abcd.partial2",
        ".xxgguf.0123abcd.partial",
        ".y.gguf.0123abcd.partial",
    ]
    for name in kept:
        (folder / name).touch()
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    if sys.platform != "win32":
        check_outputs([plan])
    monkeypatch.undo()
    execute([plan], CODEC)
    assert names(plan) == sorted([*kept, "x.gguf"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(InvalidInput, match=r"needed, 0 B free"):
        check_outputs([plan])


def test_a_file_that_cannot_be_renamed_is_kept_and_told_of(plan: FilePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BorealisError, match="the finished file is") as caught:
        execute([plan], CODEC)
    (kept,) = names(plan)
    assert str(caught.value).endswith(str(plan.path.parent / kept))
    assert (plan.path.parent / kept).stat().st_size == plan.size


def test_a_file_that_another_program_replaces_meanwhile_gets_no_name(plan: FilePlan) -> None:
    file = PartialFile(plan)
    file.begin()
    file.path.unlink()
    file.path.write_bytes(bytes(plan.size))
    with pytest.raises(BorealisError, match="another program changed this file"):
        file.sync()
    file.discard()
    assert names(plan) == []
    assert hidden_files(plan.path) == []
