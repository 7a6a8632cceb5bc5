"""Files from the Hub are believed when their bytes are those the Hub has, whatever a connection made of them."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..helpers.hub_server import Fault, Hub, serve
from .test_hub import CHECKPOINT, resolve

REPO = "NbAiLab/borealis-4b"
CHUNK = 10 << 20
"""huggingface_hub writes so many bytes at a time; what is left of a broken download is whole chunks."""

NBYTES = CHUNK + (2 << 20) - 128
HEADER = json.dumps({"a": {"dtype": "BF16", "shape": [NBYTES // 2], "data_offsets": [0, NBYTES]}}).ljust(120).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + hashlib.shake_128(b"weights").digest(NBYTES)
FILES = {**CHECKPOINT, "model.safetensors": WEIGHTS}
TOTAL = sum(map(len, FILES.values()))
BREAKS = Fault(close=CHUNK + (1 << 20))
RESUMED = f"bytes={CHUNK}-"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({REPO: dict(FILES)}, cdn=True)) as server:
        yield server


class Machine:
    """A computer whose home, with the Hub's cache and our own notes, is empty at first."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home, self.hub = home, hub

    def resolve(self, **env: str) -> tuple[dict[str, Any], str]:
        extra = {"BOREALIS_GGUF_CACHE": str(self.home / "notes"), "NO_PROXY": "127.0.0.1,localhost"} | env
        (answer,), output = resolve(self.home, self.hub.url, (REPO, None), **extra)
        return answer, output

    def stored(self, name: str) -> Path:
        (path,) = self.home.glob(f"hub/*/snapshots/*/{name}")
        return path

    def holds(self, data: bytes) -> bool:
        return any(file.read_bytes() == data for file in self.home.rglob("*") if file.is_file())

    def forget(self) -> None:
        for note in (self.home / "notes" / "verified").iterdir():
            note.unlink()


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


FLIPPED = bytes(byte ^ 1 for byte in range(256))


def other(data: bytes) -> bytes:
    return data.translate(FLIPPED)


def refusal(*names: str) -> str:
    what = "other bytes than the Hub has under this name; removed from the cache, so run again to fetch it anew"
    return f"{REPO}: {', '.join(names)}: {what}"


SHIFTED = Fault(
    headers={"Content-Range": f"bytes 0-{len(WEIGHTS) - CHUNK - 1}/{len(WEIGHTS)}"},
    body=lambda end: WEIGHTS[: len(end)],
)


@pytest.mark.parametrize(
    "faults",
    [
        [BREAKS, Fault(headers={"ETag": '"another"'}, body=other)],
        [BREAKS, SHIFTED],
        [BREAKS, Fault(ignore_range=True, body=other)],
        [Fault(body=other)],
    ],
    ids=["another ETag", "a wrong Content-Range", "all of another file", "not resumed"],
)
def test_other_bytes_of_the_right_length(hub: Hub, machine: Machine, faults: list[Fault]) -> None:
    hub.faults["model.safetensors"] = list(faults)
    answer, _ = machine.resolve()
    assert (answer.get("type"), answer.get("error")) == ("BorealisError", refusal("model.safetensors"))
    assert not hub.faults["model.safetensors"]
    assert hub.asked_ranges == ([RESUMED] if len(faults) > 1 else [])
    assert not list(machine.home.rglob("model.safetensors"))
    sizes = [file.stat().st_size for file in machine.home.rglob("*") if file.is_file()]
    assert max(sizes) < CHUNK  # nothing of it is left in any folder
    answer, _ = machine.resolve()
    assert answer["progress"] == [[2 * len(WEIGHTS)] * 2]  # the others were verified before
    assert machine.stored("model.safetensors").read_bytes() == WEIGHTS
    assert machine.resolve()[0]["progress"] == []


def test_small_files_are_verified_too(hub: Hub, machine: Machine) -> None:
    hub.faults = {name: [Fault(body=other)] for name in ("tokenizer_config.json", "config.json", "rag.jinja")}
    answer, _ = machine.resolve()
    assert answer["error"] == refusal("additional_chat_templates/rag.jinja", "config.json", "tokenizer_config.json")
    answer, _ = machine.resolve()
    path = Path(answer["path"])
    assert {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()} == FILES


def test_a_resumed_download_that_is_right_is_kept(hub: Hub, machine: Machine) -> None:
    hub.faults["model.safetensors"] = [BREAKS, Fault(headers={"ETag": '"another"'})]
    answer, _ = machine.resolve()
    assert answer["kind"] == "Checkpoint" and hub.asked_ranges == [RESUMED]
    assert machine.stored("model.safetensors").read_bytes() == WEIGHTS


def test_a_file_is_hashed_once_and_again_when_it_changed(machine: Machine) -> None:
    assert machine.resolve()[0]["progress"] == [[2 * TOTAL] * 2]
    assert machine.resolve()[0]["progress"] == []
    shard = machine.stored("model.safetensors")
    os.utime(shard, ns=(1, 1))
    assert machine.resolve()[0]["progress"] == [[len(WEIGHTS)] * 2]
    assert machine.resolve()[0]["progress"] == []
    shard.write_bytes(other(WEIGHTS))
    assert machine.resolve()[0]["error"] == refusal("model.safetensors")
    assert not machine.holds(other(WEIGHTS))
    assert machine.resolve()[0]["progress"] == [[2 * len(WEIGHTS)] * 2]
    assert machine.stored("model.safetensors").read_bytes() == WEIGHTS


def test_what_another_program_fetched_is_verified(hub: Hub, machine: Machine) -> None:
    machine.resolve()
    machine.forget()
    assert machine.resolve()[0]["progress"] == [[TOTAL] * 2]


def test_copies_instead_of_links(hub: Hub, machine: Machine) -> None:
    """As on Windows: a copy does not tell its digest by its name, so the Hub is asked."""
    copies = {"HF_HUB_DISABLE_SYMLINKS": "1"}
    hub.faults["model.safetensors"] = [Fault(body=other)]
    assert machine.resolve(**copies)[0]["error"] == refusal("model.safetensors")
    assert not machine.holds(other(WEIGHTS))
    assert machine.resolve(**copies)[0]["kind"] == "Checkpoint"
    shard = machine.stored("model.safetensors")
    assert not shard.is_symlink() and shard.read_bytes() == WEIGHTS
    machine.forget()
    answer, output = machine.resolve(**copies, HF_HUB_OFFLINE="1")
    assert answer["kind"] == "Checkpoint"
    named = "README.md, additional_chat_templates/rag.jinja, chat_template.jinja, …"
    assert f"{answer['path']}: the Hub cannot be asked now whether these are its files: {named}\n" in output
    assert machine.resolve(**copies)[0]["progress"] == [[TOTAL] * 2]  # it was believed, and not for known


@pytest.mark.skipif(os.name == "nt", reason="links need permission there")
def test_without_network_the_cache_itself_tells(machine: Machine) -> None:
    machine.resolve()
    machine.forget()
    offline = {"HF_HUB_OFFLINE": "1"}
    assert machine.resolve(**offline)[0]["progress"] == [[TOTAL] * 2]
    assert machine.resolve(**offline)[0]["progress"] == []
    machine.stored("model.safetensors").write_bytes(other(WEIGHTS))
    machine.stored("config.json").write_bytes(other(FILES["config.json"]))
    assert machine.resolve(**offline)[0]["error"] == refusal("config.json", "model.safetensors")


def test_notes_that_cannot_be_kept_cost_only_time(machine: Machine) -> None:
    (machine.home / "notes").write_bytes(b"a file where the folder should be")
    assert machine.resolve()[0]["progress"] == [[2 * TOTAL] * 2]
    assert machine.resolve()[0]["progress"] == [[TOTAL] * 2]
