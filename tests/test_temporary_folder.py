"""Temporary folders: the next run removes those of killed runs, and none of a living one or of another program."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from borealis_gguf.temporary_folder import TemporaryFolder

HOLDS = """
import time
from borealis_gguf.temporary_folder import TemporaryFolder
folder = TemporaryFolder("org", "name")
(folder.path / "config.json").write_text("{}")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="killed with a signal")
def test_folders_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "borealis-gguf-models").mkdir()
    (tmp_path / "borealis-gguf-link").symlink_to(tmp_path / "borealis-gguf-models")
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            held = Path(process.stdout.readline().strip())
            assert held.is_relative_to(tmp_path)
            with TemporaryFolder() as own:
                assert (held / "config.json").exists() and own.is_dir()
            assert not own.exists()
        finally:
            process.send_signal(signal.SIGKILL)
    with TemporaryFolder() as own:
        assert {path.name for path in tmp_path.iterdir()} == {"borealis-gguf-models", "borealis-gguf-link", own.name}


def test_a_folder_goes_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = TemporaryFolder("a", "b")
    assert folder.path.is_dir() and folder.path.parts[-2:] == ("a", "b")
    del folder
    assert list(tmp_path.iterdir()) == []
