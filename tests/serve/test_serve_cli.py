"""`borealis-gguf serve` as a process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..cli.test_cli import BOOT, run
from ..helpers.serving import Serving, serving

KEY = "ein-hemmeleg-nokkel"


@contextmanager
def started(*args: str | Path, key: str | None = None) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The program and the line it prints when it is ready."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUTF8": "1"}
    env |= {} if key is None else {"BOREALIS_GGUF_API_KEY": key}
    command = [sys.executable, "-c", BOOT, "serve", *map(str, args)]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", bufsize=1
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def get(url: str, key: str | None = None) -> bytes:
    request = urllib.request.Request(url, headers={} if key is None else {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.read()


@pytest.mark.skipif(os.name == "nt", reason="a test cannot send Ctrl-C to one process there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_says_where_it_is_answers_and_ends(nano_q8: Path, number: signal.Signals, code: int) -> None:
    with started(nano_q8, "--port", "0", "--alias", "NbAiLab/nano", "--log", key=KEY) as (process, line):
        match = re.fullmatch(r"Serving NbAiLab/nano at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert match is not None, line
        models = json.loads(get(f"{match[1]}/v1/models", KEY))["data"]
        assert models[0]["id"] == "NbAiLab/nano"
        assert json.loads(get(f"{match[1]}/v1/models/NbAiLab/nano", KEY))["id"] == "NbAiLab/nano"
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - begun < 3
    assert (process.returncode, out) == (code, "")
    assert "GET /v1/models 200" in err
    assert "Traceback" not in err
    assert KEY not in err


def test_other_machines_need_a_key(nano_q8: Path) -> None:
    done = run("serve", nano_q8, "--host", "0.0.0.0", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: --host 0.0.0.0: other machines could use the model; give an --api-key, or say --insecure\n"
    )


def test_a_key_in_a_file(nano_q8: Path, tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(KEY + "\nmore\n", encoding="utf-8")
    with started(nano_q8, "--host", "0.0.0.0", "--port", "0", "--api-key-file", file) as (_, line):
        port = line.split()[3].rpartition(":")[2]
        assert json.loads(get(f"http://127.0.0.1:{port}/v1/models", KEY))["data"]
    file.write_text("to ord\n", encoding="utf-8")
    for args in (("--api-key-file", file), ("--api-key", ""), ("--api-key-file", tmp_path / "none")):
        done = run("serve", nano_q8, *args)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "ord" not in done.stderr
    assert run("serve", nano_q8, "--api-key", "a", "--api-key-file", file).returncode == 2


def test_a_port_that_is_taken_and_a_file_that_is_no_model(nano_q8: Path, tmp_path: Path) -> None:
    with serving(nano_q8) as running:
        assert isinstance(running, Serving)
        done = run("serve", nano_q8, "--port", str(running.port))
    assert done.returncode == 2
    assert "cannot listen there" in done.stderr
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(nano_q8.read_bytes()[:100_000])
    done = run("serve", broken, "--port", "0")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "broken.gguf" in done.stderr


def test_without_the_extra() -> None:
    boot = f"import sys; sys.modules['uvicorn'] = None; sys.argv = ['x', 'serve', 'm.gguf']; {BOOT}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", boot], env=env, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, 'Error: uvicorn is missing; pip install "borealis-gguf[serve]"\n')
