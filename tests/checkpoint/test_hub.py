"""What a source means, and fetching one from a Hub that runs here."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import Checkpoint, open_checkpoint
from borealis_gguf.checkpoint.gguf import GGUFFile
from borealis_gguf.checkpoint.hub.download import parse_id
from borealis_gguf.checkpoint.source import read_source
from borealis_gguf.errors import InvalidInput

from ..helpers import attacks as a
from ..helpers.hub_server import COMMIT, Hub, serve

CHECKPOINT = {
    "config.json": b'{"model_type": "gemma3_text"}',
    "model.safetensors": a.one(),
    "tokenizer.json": b"{}",
    "tokenizer.model": b"\n\x00",
    "tokenizer_config.json": b'{"a": 1}',  # equal files would be one blob, fetched once
    "generation_config.json": b'{"b": 1}',
    "chat_template.jinja": b"{{ bos }}",
    "additional_chat_templates/rag.jinja": b"{{ rag }}",
    "README.md": b"---\nlicense: gemma\n---\n",
}
OTHERS = {
    "pytorch_model.bin": b"PK",
    "consolidated.safetensors": a.one(),
    "onnx/model.onnx": b"x",
    "sub/config.json": b"{}",
    "model/../../evil.safetensors": b"x",
    "tokenizer\\evil": b"x",
    "training_args.bin": b"x",
}
TOKEN = "hf_SecretSecretSecretSecret"


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


# ---- on this machine


def master(type: int = a.T_BF16, kind: str = "model", architecture: str = "gemma3") -> bytes:
    kvs = [
        a.kv("general.architecture", a.STRING, a.string(architecture)),
        a.kv("general.type", a.STRING, a.string(kind)),
    ]
    return a.gguf(kvs, [a.info("w", [32], type, 0), a.info("n", [8], a.T_F32, 64)], bytes(96))


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    path = put(tmp_path / "blå bær", config__json=b"{}", model__safetensors=a.one(), m__gguf=master())
    for source in (path, str(path)):
        found = read_source(source)
        assert isinstance(found, Checkpoint) and (found.path, found.stem) == (path, "blå bær")


def test_a_gguf_file(tmp_path: Path) -> None:
    path = put(tmp_path, m__gguf=master()) / "m.gguf"
    found = read_source(path)
    assert isinstance(found, GGUFFile) and (found.path, found.stem) == (path, "m")


def test_a_folder_with_one_unquantized_model(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        m_BF16__gguf=master(),
        m_Q8__gguf=master(a.T_Q8_0),
        mmproj__gguf=master(kind="mmproj", architecture="clip"),
        imatrix__gguf=master(kind="imatrix"),
        lora__gguf=master(kind="adapter"),
    )
    found = read_source(path)
    assert isinstance(found, GGUFFile) and found.path == path / "m_BF16.gguf"


def test_folders_that_do_not_tell(tmp_path: Path) -> None:
    assert "no config.json (a checkpoint) and no F32, F16 or BF16 GGUF" in refused(lambda: read_source(tmp_path))
    put(tmp_path, q__gguf=master(a.T_Q8_0))
    assert "its GGUFs (q.gguf) are quantized or no models" in refused(lambda: read_source(tmp_path))
    put(tmp_path, a__gguf=master(), b__gguf=master(a.T_F16))
    assert "holds 2 unquantized GGUFs (a.gguf, b.gguf); give one" in refused(lambda: read_source(tmp_path))


def test_files_that_are_no_source(tmp_path: Path) -> None:
    put(tmp_path, model__safetensors=a.one(), config__json=b"{}", x__bin=b"PK\3\4", x__txt=b"hei")
    assert "give the folder it lies in" in refused(lambda: read_source(tmp_path / "model.safetensors"))
    assert "give the folder it lies in" in refused(lambda: read_source(tmp_path / "config.json"))
    assert "zip archive" in refused(lambda: read_source(tmp_path / "x.bin"))
    assert "neither a GGUF nor a checkpoint folder" in refused(lambda: read_source(tmp_path / "x.txt"))


def test_a_local_path_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "NbAiLab" / "borealis-4b", config__json=b"{}", model__safetensors=a.one())
    monkeypatch.chdir(tmp_path)
    assert read_source("NbAiLab/borealis-4b").path == Path("NbAiLab/borealis-4b")
    assert "revision 'v1' means nothing" in refused(lambda: read_source("NbAiLab/borealis-4b", revision="v1"))


@pytest.mark.parametrize(
    "text", ["./borealis", "/no/such/folder", "~/x", "borealis.gguf", "a/b/c", "..\\x", "C:\\m", "x" * 5000, "a b"]
)
def test_paths_that_do_not_exist(text: str) -> None:
    message = refused(lambda: read_source(text))
    assert "no such file or folder, and not a Hub id such as NbAiLab/borealis-4b" in message


def test_a_path_object_is_never_a_hub_id(tmp_path: Path) -> None:
    assert refused(lambda: read_source(Path("NbAiLab/none"))).endswith("none: no such file or folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NbAiLab/borealis-4b", ("NbAiLab/borealis-4b", None)),
        ("NbAiLab/borealis-4b@v1.0", ("NbAiLab/borealis-4b", "v1.0")),
        ("hf://NbAiLab/borealis-4b@refs/pr/1", ("NbAiLab/borealis-4b", "refs/pr/1")),
        ("https://huggingface.co/NbAiLab/borealis-4b", ("NbAiLab/borealis-4b", None)),
        ("hf.co/a/b_c.d", ("a/b_c.d", None)),
        ("./a/b", (None, None)),
        ("borealis", (None, None)),
    ],
)
def test_hub_ids(text: str, expected: tuple[str | None, str | None]) -> None:
    assert parse_id(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/a..b", "no name has '--' or '..'"),
        ("org/a--b", "no name has '--' or '..'"),
        ("org/x.git", "ends in .git"),
        ("org/" + "x" * 93, "97 characters; 96 is the most"),
        ("org/-x", "neither begin nor end"),
        ("org/x.", "neither begin nor end"),
        ("ørg/x", "names have letters"),
        ("org/x\n", "names have letters"),
        ("org/x@", "'' is not a revision"),
        ("org/x@../main", "is not a revision"),
        ("org/x@a//b", "is not a revision"),
        ("hf://x", "it has the form NbAiLab/borealis-4b"),
        ("hf://a/b/c", "it has the form"),
        ("https://huggingface.co/a/b/tree/main", "it has the form"),
        ("", "not a path and not a Hub id"),
        ("a\0/b", "not a path and not a Hub id"),
    ],
)
def test_names_the_hub_does_not_allow(text: str, expected: str) -> None:
    assert expected in refused(lambda: read_source(text))


def test_two_revisions() -> None:
    message = refused(lambda: read_source("hf://a/b@v1", revision="v2"))
    assert "names revision v1, but 'v2' is asked for" in message
    assert "is not a revision" in refused(lambda: read_source("a/b", revision="../v2"))


def test_a_token_in_the_source_is_not_repeated() -> None:
    assert TOKEN not in refused(lambda: read_source(f"https://user:{TOKEN}@huggingface.co/a/b"))
    assert TOKEN not in refused(lambda: read_source(f"hf://a/b@{TOKEN}/..", revision=None))


# ---- on the Hub: the address is read when huggingface_hub is imported, hence a process of its own

CHILD = """
import json, os, sys
from borealis_gguf.checkpoint.source import read_source
from borealis_gguf.errors import BorealisError, Cancelled
def step(done, total):
    seen.append((done, total))
    if "STOP" in os.environ:
        raise Cancelled("stopped")
for source, revision in json.loads(sys.argv[1]):
    seen = []
    try:
        found = read_source(source, revision=revision, on_progress=step)
        answer = {"kind": type(found).__name__, "path": str(found.path), "repo_id": found.repo_id}
    except BorealisError as error:
        answer = {"error": str(error), "type": type(error).__name__}
    print(json.dumps(answer | {"progress": seen[-1:]}))
"""


def resolve(home: Path, url: str, *sources: tuple[str, str | None], **extra: str) -> tuple[list[dict[str, Any]], str]:
    """The answers of `read_source`, and everything the process wrote."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "XDG_CACHE"))}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", CHILD, json.dumps(sources)]
    run = subprocess.run(command, env=env | extra, capture_output=True, encoding="utf-8", timeout=60)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stdout + run.stderr


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repos = {
        "NbAiLab/borealis-4b": CHECKPOINT | OTHERS,
        "NbAiLab/borealis-4b-gguf": {"m.gguf": master(), "README.md": b""},
        "NbAiLab/pickled": {"config.json": b"{}", "pytorch_model.bin": b"PK"},
        "NbAiLab/gated": CHECKPOINT,
    }
    status = {
        "NbAiLab/gated": (403, "GatedRepo"),
        "NbAiLab/locked": (401, "GatedRepo"),
        "NbAiLab/broken": (500, ""),
        "NbAiLab/none": (404, "RepoNotFound"),
    }
    with serve(Hub(repos, status, files_only={"NbAiLab/gated"})) as server:
        yield server


def test_download(hub: Hub, tmp_path: Path) -> None:
    sources = [("NbAiLab/borealis-4b", None), ("hf://NbAiLab/borealis-4b@v1", None), ("NbAiLab/borealis-4b", COMMIT)]
    answers, output = resolve(tmp_path, hub.url, *sources)
    for answer in answers:
        assert (answer["kind"], answer["repo_id"]) == ("Checkpoint", "NbAiLab/borealis-4b")
        assert Path(answer["path"]).name == COMMIT
    path = Path(answers[0]["path"])
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files == CHECKPOINT
    assert not list(tmp_path.rglob("*evil*"))
    checkpoint = open_checkpoint(path)
    assert checkpoint.repo_id == "NbAiLab/borealis-4b" and list(checkpoint.tensors) == ["a"]
    fetched = sum(line.startswith("GET") and line.endswith("/model.safetensors") for line in hub.asked)
    assert fetched == 1
    total = sum(map(len, CHECKPOINT.values()))
    assert answers[0]["progress"] == [[2 * total, 2 * total]]  # fetched, then verified
    assert [answer["progress"] for answer in answers[1:]] == [[], []]
    assert TOKEN not in output and f"Bearer {TOKEN}" in hub.tokens


def test_what_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    names = ["gated", "locked", "none", "unknown", "broken", "borealis-4b-gguf", "pickled"]
    sources = [*((f"NbAiLab/{name}", None) for name in names), ("NbAiLab/borealis-4b", "v9")]
    answers, output = resolve(tmp_path, hub.url, *sources)
    errors = [answer["error"] for answer in answers]
    for error in errors[:2]:
        assert "accept the licence at https://huggingface.co/NbAiLab/" in error and "`hf auth login`" in error
    for error in errors[2:4]:
        assert "no such folder here, and no such model on the Hub" in error and "`hf auth login`" in error
    assert (
        errors[4]
        == "NbAiLab/broken: the Hub answered 500, 3 times in a row; try again later, what was downloaded is kept"
    )
    assert "holds no config.json, so no checkpoint" in errors[5]
    assert "holds no model*.safetensors" in errors[6]
    assert "has no revision 'v9'; see https://huggingface.co/NbAiLab/borealis-4b/commits/main" in errors[7]
    assert all("\n" not in error for error in errors)
    assert TOKEN not in output


def test_a_download_can_be_stopped(hub: Hub, tmp_path: Path) -> None:
    (answer,), _ = resolve(tmp_path, hub.url, ("NbAiLab/borealis-4b", None), STOP="1")
    assert (answer["type"], answer["error"]) == ("Cancelled", "stopped")


def test_without_network_the_cache_serves(hub: Hub, tmp_path: Path) -> None:
    (online,), _ = resolve(tmp_path, hub.url, ("NbAiLab/borealis-4b", None))
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        answers, output = resolve(tmp_path, url, ("NbAiLab/borealis-4b", None), ("NbAiLab/other", None))
        offline, _ = resolve(tmp_path, url, ("NbAiLab/borealis-4b", None), ("NbAiLab/other", None), HF_HUB_OFFLINE="1")
    assert answers[0]["path"] == offline[0]["path"] == online["path"]
    assert "the Hub cannot be reached; is there a network connection?" in answers[1]["error"]
    assert "HF_HUB_OFFLINE is set" in offline[1]["error"]
    assert TOKEN not in output
