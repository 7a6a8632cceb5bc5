"""`--stream` and downloads as a user meets them: a process, a Hub on this machine, and what is left on the disk."""

import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..checkpoint.test_hub import TOKEN
from ..conftest import NANO
from ..helpers.hub_server import COMMIT, SIGNATURE, Fault, Hub, serve
from ..helpers.lora_adapters import FOR_NANO
from .test_cli import BOOT

REPO = "NbAiLab/nano-nb-7m"
SHARD = "model-00002-of-00003.safetensors"
FILES = {file.name: file.read_bytes() for file in NANO.iterdir()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({REPO: dict(FILES)}, cdn=True)) as server:
        yield server


class Machine:
    """A computer with a home, a folder for temporary files and one to work in, all empty."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.home, self.temporary, self.work = root / "home", root / "tmp", root / "work"
        for folder in (self.home, self.temporary, self.work):
            folder.mkdir()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XDG", "TRANSFORMERS"))}
        places = {"HOME": self.home, "USERPROFILE": self.home, "HF_HOME": self.home / "hf"}
        places |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.temporary)
        self.env = env | {name: str(path) for name, path in places.items()}
        self.env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1,localhost"}
        self.env |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def run(self, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", BOOT, *args]
        done = subprocess.run(
            command, cwd=self.work, env=self.env | env, capture_output=True, encoding="utf-8", timeout=120
        )
        assert TOKEN not in done.stdout + done.stderr and SIGNATURE not in done.stdout + done.stderr
        return done

    def start(self, *args: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", BOOT, *args]
        return subprocess.Popen(command, cwd=self.work, env=self.env, stderr=subprocess.PIPE, encoding="utf-8")

    def files(self) -> set[str]:
        roots = (self.home, self.temporary, self.work)
        return {file.relative_to(root).as_posix() for root in roots for file in root.rglob("*") if file.is_file()}


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_streaming_stores_the_output_and_nothing_else(hub: Hub, machine: Machine) -> None:
    done = machine.run("quantize", "Q4_K_M", "Q8_0", "-m", REPO, "--stream")
    assert (done.returncode, done.stderr) == (0, "")
    names = {"nano-nb-7m-Q4_K_M.gguf", "nano-nb-7m-Q8_0.gguf"}
    assert machine.files() == names
    assert hub.hosts == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {""}}
    streamed = {name: sha(machine.work / name) for name in names}
    done = machine.run("quantize", "Q4_K_M", "Q8_0", "-m", REPO)
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: sha(machine.work / name) for name in names} == streamed


SLOW = Fault(stall=3.0)


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
@pytest.mark.parametrize(
    ("name", "faults"),
    [("tokenizer.json", [SLOW]), (SHARD, [SLOW]), (SHARD, [Fault(), SLOW])],
    ids=["small files", "headers", "weights"],
)
def test_the_temporary_folder_goes_when_the_program_is_stopped(
    hub: Hub, machine: Machine, name: str, faults: list[Fault], sent: signal.Signals, exit_code: int
) -> None:
    hub.faults[name] = list(faults)
    with machine.start("quantize", "Q8_0", "-m", REPO, "--stream") as process:
        while hub.faults[name] and process.poll() is None:
            time.sleep(0.02)
        meanwhile = list(machine.temporary.iterdir())
        process.send_signal(sent)
        process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert {folder.name.startswith("borealis-gguf-") for folder in meanwhile} == {True}
    assert not any(list(folder.iterdir()) for folder in (machine.temporary, machine.work))


def test_converting_a_pinned_revision(hub: Hub, machine: Machine) -> None:
    done = machine.run("convert", f"hf://{REPO}@v1", "--stream", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.files() == {"nano-nb-7m-BF16.gguf"}
    fetched = [line for line in hub.asked if "/resolve/" in line]
    assert fetched and all(f"/resolve/{COMMIT}/" in line for line in fetched)


def test_adapters_and_streaming(hub: Hub, machine: Machine) -> None:
    lora = str(FOR_NANO.write(machine.work.parent))
    for name, *source in (("streamed.gguf", REPO, "--stream"), ("local.gguf", str(NANO))):
        assert machine.run("quantize", "Q8_0", "-o", name, "--lora", lora, "-m", *source).returncode == 0
    weights = [(machine.work / name).read_bytes()[-6_500_000:] for name in ("streamed.gguf", "local.gguf")]
    assert weights[0] == weights[1]
    hub.ranges.clear()
    assert machine.run("convert-lora", lora, "--base", REPO, "--stream", "-o", "lora.gguf").returncode == 0
    assert len([r for r in hub.ranges if r == "bytes=0-262143"]) == 3  # the base's headers, and no more of its shards
    assert machine.files() == {"streamed.gguf", "local.gguf", "lora.gguf"}


def test_a_dry_run_reads_no_weight_and_tells_the_memory(hub: Hub, machine: Machine) -> None:
    done = machine.run("quantize", "Q4_K_M", "-m", REPO, "--stream", "--dry-run", "--json", "-j", "2")
    plan = json.loads(done.stdout)
    assert plan["files"][0]["path"] == "nano-nb-7m-Q4_K_M.gguf"
    # 8 reads under way and one piece for each of 2 workers, of 8 MiB; for each a million weights in BF16 and float32,
    # and three times what is made of as many in Q6_K, that one worker leaves to the other
    assert 80 << 20 < plan["memory"] < (80 + 16 + 3) << 20
    assert machine.files() == set()


def test_faults_leave_a_line_and_no_file(hub: Hub, machine: Machine) -> None:
    hub.faults[SHARD] = [Fault(), *[Fault(headers={"ETag": '"another"'})] * 99]
    done = machine.run("quantize", "Q8_0", "-m", REPO, "--stream")
    assert done.returncode == 1
    assert done.stderr == f"Error: {REPO}@c0ffee0/{SHARD}: changed while it was read; run again\n"
    hub.status = {REPO: (403, "GatedRepo")}
    done = machine.run("quantize", "Q8_0", "-m", REPO, "--stream")
    assert "accept the licence at https://huggingface.co/NbAiLab/nano-nb-7m first, then log in" in done.stderr
    done = machine.run("quantize", "Q8_0", "-m", REPO, "--stream", HF_HUB_OFFLINE="1")
    assert "no such folder here, and HF_HUB_OFFLINE is set, so nothing can be read from the Hub" in done.stderr
    done = machine.run("quantize", "Q8_0", "-m", REPO, "--stream", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub cannot be reached (ConnectError), 3 times in a row; is there a network connection?" in done.stderr
    assert machine.files() == set()


def test_the_token_of_a_login(hub: Hub, machine: Machine) -> None:
    (machine.home / "hf").mkdir()
    (machine.home / "hf" / "token").write_text(TOKEN)
    del machine.env["HF_TOKEN"]
    assert machine.run("quantize", "Q8_0", "-m", REPO, "--stream", "--dry-run").returncode == 0
    assert hub.tokens == {f"Bearer {TOKEN}", ""}
    del machine.env["HF_HOME"]
    hub.tokens.clear()
    assert machine.run("quantize", "Q8_0", "-m", REPO, "--stream", "--dry-run").returncode == 0
    assert hub.tokens == {""}


def test_streaming_a_folder_is_reading_it(machine: Machine) -> None:
    assert machine.run("quantize", "Q8_0", "-m", str(NANO), "--stream").returncode == 0
    assert machine.files() == {"nano-nb-7m-Q8_0.gguf"}


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(503), Fault(429, {"Retry-After": "1"})],
        [Fault(reset=1_000_000)],
        [Fault(close=1_000_000), Fault(ignore_range=True)],
    ],
    ids=["status", "reset", "ignores ranges"],
)
def test_downloads_survive_trouble(hub: Hub, machine: Machine, faults: list[Fault]) -> None:
    hub.faults[SHARD] = list(faults)
    done = machine.run("quantize", "Q8_0", "-m", REPO)
    assert done.returncode == 0, done.stderr
    assert not hub.faults[SHARD]
    (stored,) = (file for file in machine.home.rglob(SHARD))
    assert stored.read_bytes() == FILES[SHARD]


@pytest.mark.skipif(os.name == "nt", reason="no terminal to be had there")
@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_progress_on_a_terminal(machine: Machine, stream: tuple[str, ...]) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar is as wide as its terminal
    command = [sys.executable, "-c", BOOT, "quantize", "Q8_0", "-m", REPO, "--dry-run", *stream]
    with subprocess.Popen(command, cwd=machine.work, env=machine.env, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert re.search(r"Fetching: 100%.*B/s\]", text), text
    assert TOKEN not in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other side was closed
        return b""
