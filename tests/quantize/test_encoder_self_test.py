"""What happens to files when the package's own encoders are missing, or make other bytes than the loaded ggml."""

import array
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import borealis_gguf
from borealis_gguf import machine_cache
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import Cancelled
from borealis_gguf.quantize.encoders import ggml_digest_cache, native
from borealis_gguf.quantize.encoders.libraries import library_path
from borealis_gguf.quantize.encoders.sample_weights import SAMPLE_DIGESTS
from borealis_gguf.quantize.encoders.self_test import PendingSelfTest

from ..cli.test_cli import BOOT
from ..conftest import NANO

INSTALLED = Path(borealis_gguf.__file__).parent
KERNELS = "_kernels*"
NO_CODE = ("__pycache__", ".*", "build", "demo", "tests", "examples", "*.egg-info")
"""What lies beside the package where it is installed from a checkout, as `pip install -e` does."""
ON_X86 = pytest.mark.skipif(not native.ggml_decides(), reason="elsewhere ggml's bytes are others, and not asked for")

Run = subprocess.CompletedProcess[str]


@dataclass
class Installation:
    """A copy of the installed package that can be damaged, with a cache of its own and a folder to write to."""

    root: Path
    without: str = "nothing"
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.package = self.root / "site" / "borealis_gguf"
        ignored = shutil.ignore_patterns(self.without, *NO_CODE)
        shutil.copytree(INSTALLED, self.package, ignore=ignored)
        found = os.pathsep.join([str(self.package.parent), *filter(None, sys.path)])
        given = {"PYTHONPATH": found, "PYTHONUTF8": "1", "BOREALIS_GGUF_CACHE": str(self.root / "cache")}
        self.env = {**os.environ, **given}

    def change(self, file: str, old: str, new: str) -> None:
        path = self.package / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def quantize(self, name: str, *args: str, **env: str) -> Run:
        """Run the command line; its files come to the folder `name`."""
        (self.root / name).mkdir(exist_ok=True)
        command = [sys.executable, "-c", BOOT, "quantize", *args, "-q", "-m", str(NANO), "-o", str(self.root / name)]
        return subprocess.run(
            command, cwd=self.root, env=self.env | env, capture_output=True, encoding="utf-8", timeout=120
        )

    def files(self, name: str) -> dict[str, str]:
        """SHA-256 by name."""
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (self.root / name).iterdir()}


def test_without_kernels_ggml_encodes_and_one_line_says_so(tmp_path: Path) -> None:
    bare = Installation(tmp_path, without=KERNELS)
    assert list(INSTALLED.glob(f"quantize/encoders/{KERNELS}"))
    assert not list(bare.package.glob(f"quantize/encoders/{KERNELS}"))
    done = bare.quantize("bare", "Q4_K_M", "Q8_0", "Q5_0", "-j", "2")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "WARNING: no native encoders in this installation, so ggml encodes, more slowly; a C compiler at hand when "
        "borealis-gguf is installed gives them\n"
    )
    wanted = bare.quantize("ggml", "Q4_K_M", "Q8_0", "Q5_0", "-j", "2", BOREALIS_GGUF_ENCODERS="ggml")
    assert (wanted.returncode, wanted.stderr) == (0, "")
    assert len(bare.files("bare")) == 3 and bare.files("bare") == bare.files("ggml")


def test_types_that_differ_are_named_in_one_warning_and_encoded_by_ggml(tmp_path: Path) -> None:
    other = Installation(tmp_path)
    isa = native.available_isas()[-1]
    for name in ("Q4_K", "Q6_K"):
        digest = SAMPLE_DIGESTS[name]
        other.change("quantize/encoders/sample_weights.py", f'"{name}": "{digest}"', f'"{name}": "{digest[::-1]}"')
    other.change(
        "quantize/encoders/native.py", "    return sample_digest(type, None)", "    return SAMPLE_DIGESTS[type.name]"
    )
    done = other.quantize("other", "Q4_K_M", "Q5_K_S", "-j", "2")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"WARNING: Q4_K, Q6_K: the {isa} encoder differs from ggml's, which is used instead\n"
    wanted = other.quantize("ggml", "Q4_K_M", "Q5_K_S", BOREALIS_GGUF_ENCODERS="ggml")
    assert (wanted.returncode, wanted.stderr) == (0, "")
    assert len(other.files("other")) == 2 and other.files("other") == other.files("ggml")


def test_types_without_kernels_are_encoded_by_ggml_without_a_warning(tmp_path: Path) -> None:
    whole = Installation(tmp_path)
    assert not any(native.can_encode("baseline", type) for type in (T.Q1_0, T.Q2_0))
    for name, env in (("ours", {}), ("ggml", {"BOREALIS_GGUF_ENCODERS": "ggml"})):
        done = whole.quantize(name, "Q1_0", "Q2_0", "--no-check", **env)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(whole.files("ours")) == 2 and whole.files("ours") == whole.files("ggml")


# ---- the lattice types: what ggml answered is remembered


def libraries(folder: Path, *, changed: bool) -> str:
    """A folder with ggml's library; `changed`, it numbers the first two points of IQ3_S the other way round."""
    folder.mkdir()
    library = library_path()
    points = array.array("H", [0, 1, 2, 5, 7, 8, 9, 10, 12, 14, 16, 17]).tobytes()
    data = library.read_bytes()
    assert data.count(points) == 1
    if changed:
        data = data.replace(points, points[2:4] + points[:2] + points[4:])
    (folder / library.name).write_bytes(data)
    return str(folder)


def notes(installation: Installation) -> list[dict[str, str]]:
    return [json.loads(file.read_text()) for file in sorted((installation.root / "cache" / "ggml").glob("*"))]


@ON_X86
def test_ggml_encodes_the_sample_once_for_each_version_of_its_library(tmp_path: Path) -> None:
    ours = Installation(tmp_path)
    asked = "    known = _cached_digest(type)\n    if known is None:\n"
    ours.change("quantize/encoders/self_test.py", asked, f"{asked}        print('asked about', type.name)\n")
    first = ours.quantize("first", "IQ3_S", "--no-check")
    assert (first.returncode, first.stdout, first.stderr) == (0, "asked about IQ3_S\n", "")
    assert notes(ours) == [{"IQ3_S": SAMPLE_DIGESTS["IQ3_S"]}]
    second = ours.quantize("second", "IQ3_S", "--no-check")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    another = libraries(tmp_path / "lib", changed=False)
    third = ours.quantize("third", "IQ3_S", "--no-check", LLAMA_CPP_LIB_PATH=another)
    assert (third.returncode, third.stdout, third.stderr) == (0, "asked about IQ3_S\n", "")
    assert notes(ours) == [{"IQ3_S": SAMPLE_DIGESTS["IQ3_S"]}] * 2
    assert ours.files("first") == ours.files("second") == ours.files("third")


@ON_X86
def test_a_ggml_with_other_bytes_keeps_the_file_from_its_name_and_encodes_the_next(tmp_path: Path) -> None:
    ours, isa = Installation(tmp_path), native.available_isas()[-1]
    ours.env["LLAMA_CPP_LIB_PATH"] = folder = libraries(tmp_path / "lib", changed=True)
    first = ours.quantize("first", "IQ3_S", "--no-check")
    assert (first.returncode, first.stdout, ours.files("first")) == (1, "", {})
    library = Path(folder) / library_path().name
    assert first.stderr == (
        f"Error: IQ3_S: the {isa} encoder differs from that of {library}; run again, and ggml's is used instead, or "
        "set BOREALIS_GGUF_ENCODERS=ggml\n"
    )
    second = ours.quantize("second", "IQ3_S", "--no-check")
    assert (second.returncode, second.stdout) == (0, "")
    assert second.stderr == f"WARNING: IQ3_S: the {isa} encoder differs from ggml's, which is used instead\n"
    wanted = ours.quantize("ggml", "IQ3_S", "--no-check", BOREALIS_GGUF_ENCODERS="ggml")
    assert (wanted.returncode, wanted.stderr) == (0, "")
    assert len(ours.files("second")) == 1 and ours.files("second") == ours.files("ggml")
    usual = ours.quantize("usual", "IQ3_S", "--no-check", LLAMA_CPP_LIB_PATH="")
    assert (usual.returncode, usual.stderr) == (0, "")
    assert list(ours.files("usual").values()) != list(ours.files("ggml").values())


def test_stopping_a_run_does_not_wait_for_ggml() -> None:
    stop, answered = threading.Event(), threading.Event()
    asking = threading.Thread(target=answered.wait, args=(30,))
    asking.start()
    stop.set()
    with pytest.raises(Cancelled, match="nothing was written"):
        PendingSelfTest("baseline", (), asking).finish(stop)
    assert asking.is_alive()
    answered.set()
    asking.join()
    assert PendingSelfTest("baseline", (), asking).finish(threading.Event()) is None


@ON_X86
@pytest.mark.parametrize("content", ["", "{", "[]", '{"IQ3_S": 7}', '{"IQ3_XXS": "0"}'])
def test_a_damaged_cache_entry_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path))
    monkeypatch.setattr(ggml_digest_cache, "_in_memory", {})
    ggml_digest_cache.write_digest(T.IQ3_S, b"sample", "digest")
    (note,) = (tmp_path / ggml_digest_cache.CACHE_FOLDER).iterdir()
    ggml_digest_cache._in_memory.clear()
    assert ggml_digest_cache.read_digest(T.IQ3_S, b"sample") == "digest"
    assert ggml_digest_cache.read_digest(T.IQ3_S, b"another sample") is None
    note.write_text(content)
    assert ggml_digest_cache.read_digest(T.IQ3_S, b"sample") is None
    ggml_digest_cache.write_digest(T.IQ3_S, b"sample", "digest")
    assert machine_cache.read_note(ggml_digest_cache.CACHE_FOLDER, note.stem)["IQ3_S"] == "digest"


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    ours = Installation(tmp_path)
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    for name in ("first", "second"):
        done = ours.quantize(name, "IQ3_S", "--no-check")
        assert (done.returncode, done.stderr) == (0, "")
    assert len(ours.files("first")) == 1 and ours.files("first") == ours.files("second")
