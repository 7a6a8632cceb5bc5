"""Checkpoint folders: honest ones, and every way their files can contradict each other."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.api import plan_convert
from borealis_gguf.checkpoint.file_access import extended_windows
from borealis_gguf.checkpoint.folder import open_checkpoint, read_json_object
from borealis_gguf.checkpoint.lora import read_adapter
from borealis_gguf.checkpoint.source import read_source
from borealis_gguf.errors import InvalidInput

from ..helpers import attacks as a
from ..helpers.lora_adapters import FOR_NANO
from ..helpers.paths import NANO

CONFIG = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def tensors(*names: str) -> bytes:
    entries = {name: a.entry(offsets=[12 * index, 12 * index + 12]) for index, name in enumerate(names)}
    return a.safetensors(entries, bytes(12 * len(names)))


def folder(path: Path, files: dict[str, Any]) -> Path:
    """A folder of `files`: bytes as they are, anything else as JSON; config.json is added unless given as None."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in ({"config.json": CONFIG} | files).items():
        if content is not None:
            (path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def index(weight_map: Any, total: Any = 36) -> dict[str, Any]:
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def sharded(**changes: Any) -> dict[str, Any]:
    files = {
        "model.safetensors.index.json": index({"b": ONE, "a.10": ONE, "a.2": TWO}),
        ONE: tensors("b", "a.10"),
        TWO: tensors("a.2"),
    }
    return files | changes


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


# ---- honest folders


def test_single_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "blå bær", {"model.safetensors": tensors("b", "a.10", "a.2")})
    checkpoint = open_checkpoint(path, repo_id="NbAiLab/borealis-4b")
    assert (checkpoint.path, checkpoint.repo_id, checkpoint.config) == (path, "NbAiLab/borealis-4b", CONFIG)
    assert list(checkpoint.tensors) == ["a.10", "a.2", "b"]
    assert checkpoint.tensors["b"].offset < checkpoint.tensors["a.10"].offset


def test_shards_in_order_of_file_names_then_of_names_as_strings(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path, sharded()))
    assert [(name, slice.path.name) for name, slice in checkpoint.tensors.items()] == [
        ("a.10", ONE),
        ("b", ONE),
        ("a.2", TWO),
    ]
    assert checkpoint.repo_id is None


def test_the_example_checkpoint() -> None:
    checkpoint = open_checkpoint(NANO)
    assert len(checkpoint.tensors) == 80
    shards = sorted(NANO.glob("*.safetensors"))
    assert sum(slice.nbytes for slice in checkpoint.tensors.values()) < sum(path.stat().st_size for path in shards)
    assert next(iter(checkpoint.tensors)) == "model.embed_tokens.weight"
    assert checkpoint.file("tokenizer.json") == NANO / "tokenizer.json"
    assert checkpoint.file("absent.json") is None


def test_both_single_and_index_takes_the_single_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, sharded(**{"model.safetensors": tensors("only")}))
    with caplog.at_level(logging.WARNING, "borealis_gguf"):
        assert list(open_checkpoint(path).tensors) == ["only"]
    assert "holds both" in caplog.text


@pytest.mark.parametrize("total", [35, "36", 1e30, -1])
def test_lying_total_size_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, total: Any) -> None:
    changed = {"model.safetensors.index.json": index({"b": ONE, "a.10": ONE, "a.2": TWO}, total)}
    with caplog.at_level(logging.WARNING, "borealis_gguf"):
        assert len(open_checkpoint(folder(tmp_path, sharded(**changed))).tensors) == 3
    assert "the tensors have 36 bytes" in caplog.text


def test_an_honest_folder_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_checkpoint(folder(tmp_path, sharded()))
    assert caplog.text == ""


def test_index_without_metadata(tmp_path: Path) -> None:
    changed = {"model.safetensors.index.json": {"weight_map": {"b": ONE, "a.10": ONE, "a.2": TWO}}}
    assert len(open_checkpoint(folder(tmp_path, sharded(**changed))).tensors) == 3


# ---- folders that are none


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": None}, "holds no config.json; is this a checkpoint folder?"),
        ({"config.json": None, "m-Q4_K_M.gguf": a.gguf()}, "It holds m-Q4_K_M.gguf: give that file itself"),
        (
            {"config.json": None, "adapter_config.json": {}},
            "a LoRA adapter, not a model: borealis-gguf convert BASE --lora ",
        ),
        ({}, "holds neither model.safetensors nor model.safetensors.index.json"),
        (
            {"pytorch_model.bin": b"PK\3\4"},
            "It holds pytorch_model.bin, pickled weights; convert it to",
        ),
        ({"consolidated.00.pth": b"PK\3\4"}, "It holds consolidated.00.pth, Meta's own format"),
        ({ONE: tensors("a")}, f"It holds {ONE}: fetch model.safetensors.index.json too"),
        ({"model.safetensors": a.safetensors("{}")}, "the safetensors hold no tensors"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "Git LFS pointer.*git lfs pull"),
        ({"config.json": b"version https://git-lfs.github.com/spec/v1\n"}, "config.json: not JSON but a Git LFS"),
        ({"config.json": b"[]"}, "holds a JSON list, an object is needed"),
        ({"config.json": b'{"a": 1, "a": 2}'}, "the key 'a' occurs twice"),
        ({"config.json": b'{"a": {"b": 1, "b": 1}}'}, "the key 'b' occurs twice"),
        ({"config.json": b'{"a": ' + b"1" * 5000 + b"}"}, "is too large"),
        ({"config.json": b'{"a": "\xff"}'}, "byte 7 is not UTF-8"),
        ({"config.json": b"{} {}"}, "not valid JSON: Extra data"),
        ({"config.json": b""}, "not valid JSON"),
        ({"config.json": b'{"a":' * 100_000}, "nested too deeply"),
        ({"config.json": b" " * ((8 << 20) + 1)}, "8388609 bytes; 8388608 is the most"),
    ],
)
def test_no_checkpoint(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    path = folder(tmp_path / "c", files)
    message = refused(lambda: open_checkpoint(path))
    assert message.startswith(str(path)) and re.search(expected, message), message


def test_no_folder(tmp_path: Path) -> None:
    assert refused(lambda: open_checkpoint(tmp_path / "absent")).endswith("absent: no such folder")
    files = {"m.gguf": a.gguf(), "model.safetensors": tensors("a"), "x.bin": b"PK\3\4", "config.json": b"{}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert "a GGUF file; a checkpoint folder" in refused(lambda: open_checkpoint(tmp_path / "m.gguf"))
    assert "zip archive" in refused(lambda: open_checkpoint(tmp_path / "x.bin"))
    assert "give the folder it lies in" in refused(lambda: open_checkpoint(tmp_path / "config.json"))
    assert "give the folder it lies in" in refused(lambda: open_checkpoint(tmp_path / "model.safetensors"))


# ---- an index that lies


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "sub/model.safetensors",
        "/etc/model.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "https://example.org/model.safetensors",
        "model.safetensors:stream.safetensors",
        "..",
        "",
        "config.json",
        "a\0.safetensors",
        "a\n.safetensors",
        "x" * 300 + ".safetensors",
        1,
        None,
        ["model.safetensors"],
    ],
)
def test_shard_names_that_lead_elsewhere(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors("a"))
    path = folder(tmp_path / "c", {"model.safetensors.index.json": index({"a": shard})})
    assert "a shard is the plain name of a .safetensors file" in refused(lambda: open_checkpoint(path))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({TWO: None}, f"{TWO}: missing, though model.safetensors.index.json lists it"),
        ({TWO: tensors("a.2", "more")}, f"does not list 'more', which lies in {TWO}"),
        ({TWO: tensors("other")}, f"'a.2' is listed, but {TWO} does not hold it"),
        ({TWO: tensors("a.2", "b")}, f"{TWO}: 'b' also lies in {ONE}"),
        ({ONE: tensors("b", "a.2"), TWO: tensors("a.10")}, f"'a.10' is mapped to {ONE}, but lies in {TWO}"),
        ({TWO: tensors("a.2")[:-1]}, f"{TWO}: 'a.2' ends at byte"),
        ({"model.safetensors.index.json": {}}, "weight_map must map"),
        ({"model.safetensors.index.json": index({})}, "weight_map must map"),
        ({"model.safetensors.index.json": index([ONE])}, "weight_map must map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"b": "x", "b": "y"}}'}, "the key 'b' occurs twice"),
    ],
)
def test_index_against_shards(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = folder(tmp_path, sharded(**changes))
    message = refused(lambda: open_checkpoint(path))
    assert message.startswith(str(tmp_path)) and expected in message, message


# ---- links


def link(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def snapshot(cache: Path) -> Path:
    return cache / "models--NbAiLab--borealis-4b" / "snapshots" / ("c0ffee" + "0" * 34)


def test_links_out_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", {"model.safetensors": tensors("a"), "tokenizer.json": {}})
    for name in ("config.json", "model.safetensors"):
        path = folder(tmp_path / f"linked {name}", {"model.safetensors": tensors("a")})
        link(path / name, outside / name)
        assert "a link out of the checkpoint" in refused(lambda path=path: open_checkpoint(path))
    path = folder(tmp_path / "c", {"model.safetensors": tensors("a")})
    link(path / "tokenizer.json", "../outside/tokenizer.json")
    checkpoint = open_checkpoint(path)
    assert "a link out of the checkpoint" in refused(lambda: checkpoint.file("tokenizer.json"))


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    path = folder(tmp_path / "c", sharded())
    link(path / TWO, "absent")
    assert "a link that leads nowhere" in refused(lambda: open_checkpoint(path))
    link(path / TWO, TWO)
    assert refused(lambda: open_checkpoint(path)).startswith(str(path / TWO))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", ONE])
def test_a_dangling_link_is_damage_and_no_absence(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "c", sharded() if name != "model.safetensors" else {})
    (path / name).unlink(missing_ok=True)
    link(path / name, "absent")
    told = refused(lambda: read_source(path))
    assert told == f"{path / name}: a link that leads nowhere; copy the file itself there"


@pytest.mark.parametrize("name", [
    *("chat_template.jinja", "chat_template.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("generation_config.json", "added_tokens.json", "additional_chat_templates"),
    *("additional_chat_templates/tool.jinja",),
])  # fmt: skip
def test_a_dangling_companion_is_damage(tmp_path: Path, nano: Path, name: str) -> None:
    """Of a checkpoint that would convert without it."""
    path = Path(shutil.copytree(nano, tmp_path / "c"))
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).unlink(missing_ok=True)
    link(path / name, "absent")
    told = refused(lambda: plan_convert(path))
    assert told == f"{path / name}: a link that leads nowhere; copy the file itself there"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_dangling_link_of_an_adapter_is_damage(tmp_path: Path, name: str) -> None:
    path = FOR_NANO.write(tmp_path)
    (path / name).unlink()
    link(path / name, "absent")
    told = refused(lambda: read_adapter(path))
    assert told == f"{path / name}: a link that leads nowhere; copy the file itself there"


def test_links_inside_the_checkpoint_and_to_it_are_fine(tmp_path: Path) -> None:
    path = folder(tmp_path / "c", {"real.safetensors": tensors("a")})
    link(path / "model.safetensors", "real.safetensors")
    link(tmp_path / "alias", path)
    assert list(open_checkpoint(tmp_path / "alias").tensors) == ["a"]


@pytest.mark.parametrize("shared", [False, True])
def test_the_hub_cache(tmp_path: Path, shared: bool) -> None:
    """Snapshots link to the repository's blobs, and these may link to blobs that repositories share."""
    path = folder(snapshot(tmp_path), {})
    blobs = path.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "1234").write_bytes(tensors("a"))
    if shared:
        store = tmp_path / "blobs" / "ab"
        store.mkdir(parents=True)
        (blobs / "1234").rename(store / "abcd")
        link(blobs / "1234", "../../blobs/ab/abcd")
    link(path / "model.safetensors", "../../blobs/1234")
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors) == ["a"] and checkpoint.repo_id == "NbAiLab/borealis-4b"
    link(path / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(tensors("a"))
    assert "a link out of the checkpoint" in refused(lambda: open_checkpoint(path))


# ---- JSON for others, and Windows


def test_json_values_arrive_as_written(tmp_path: Path) -> None:
    path = tmp_path / "blå.json"
    path.write_bytes('{"å": [1, -2, 1.5, true, null, "ø\\u0041"], "n": 18446744073709551615}'.encode())
    assert read_json_object(path) == {"å": [1, -2, 1.5, True, None, "øA"], "n": 2**64 - 1}
    assert "no such file" in refused(lambda: read_json_object(tmp_path / "absent.json"))
    assert "71 bytes; 10 is the most" in refused(lambda: read_json_object(path, limit=10))


def test_the_real_tokenizer_is_within_the_limits() -> None:
    assert len(read_json_object(NANO / "tokenizer.json")["model"]["vocab"]) > 1000


def test_long_windows_paths() -> None:
    long = "C:\\" + "\\".join(["blåbær"] * 40)
    assert extended_windows("C:\\short") == "C:\\short"
    assert extended_windows(long) == "\\\\?\\" + long
    assert extended_windows("\\\\server" + long[2:]) == "\\\\?\\UNC\\server" + long[2:]
    assert extended_windows("\\\\?\\" + long) == "\\\\?\\" + long
