"""The key of saved conversations: one for all processes, kept with the user's data; without it the messages open."""

import json
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import InvalidInput, Model, Options, load
from borealis_gguf.errors import BorealisError
from borealis_gguf.runtime.conversation_key import KEY_BYTES, make_key, read_key
from borealis_gguf.runtime.state_file import MAGIC, MAX_UNSEALED, SEAL
from borealis_gguf.runtime.terminal.terminal_io import history_file
from borealis_gguf.user_data import data_dir

GREEDY = {"temperature": 0.0}
SHORT = Options(max_tokens=8)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The cache and the data folder, none of which is there yet."""
    cache, data = tmp_path / "cache", tmp_path / "share" / "data"
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(cache))
    monkeypatch.setenv("BOREALIS_GGUF_DATA", str(data))
    return cache, data


@pytest.fixture(scope="module")
def model(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, sampling=GREEDY, context=512, extra_buffers=False) as loaded:
        yield loaded


RACE = """
import sys, time
from borealis_gguf.runtime import conversation_key, state_file
from pathlib import Path
print("ready", flush=True)
sys.stdin.read(1)
print(conversation_key.make_key().hex())
"""


def test_processes_that_make_the_key_at_once_get_the_same(folders: tuple[Path, Path]) -> None:
    _, data = folders
    for _ in range(3):
        runs = [
            subprocess.Popen([sys.executable, "-c", RACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        assert {run.stdout.readline() for run in runs if run.stdout} == {"ready\n"}
        for run in runs:
            assert run.stdin
            run.stdin.write("x")
            run.stdin.flush()
        keys = {run.communicate()[0] for run in runs}
        assert {len(key) for key in keys} == {2 * KEY_BYTES + 1} and len(keys) == 1
        assert [path.name for path in data.iterdir()] == ["conversation.key"]
        (data / "conversation.key").unlink()


def test_the_unlucky_moment_of_two_makers(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes its key between our look and our file: its key is the key."""
    theirs = os.urandom(KEY_BYTES)

    def late(count: int) -> bytes:
        (data_dir() / "conversation.key").write_bytes(theirs)
        return bytes(count)

    monkeypatch.setattr("secrets.token_bytes", late)
    assert make_key() == theirs == read_key()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_key_and_folder_are_the_users_alone(folders: tuple[Path, Path]) -> None:
    _, data = folders
    assert read_key() is None
    key = make_key()
    assert key == read_key() == make_key() and len(key) == KEY_BYTES
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "conversation.key").stat().st_mode) == 0o600


def test_files_of_an_earlier_version_move_in(folders: tuple[Path, Path]) -> None:
    cache, data = folders
    cache.mkdir()
    (cache / "conversation.key").write_bytes(b"k" * KEY_BYTES)
    (cache / "chat-history").write_text("+Hei\n", encoding="utf-8")
    assert read_key() == make_key() == b"k" * KEY_BYTES
    history = history_file()
    assert history == data / "chat-history"
    assert (data / "chat-history").read_text(encoding="utf-8") == "+Hei\n"
    assert list(cache.iterdir()) == []


def test_a_damaged_key_is_told_of_and_kept(folders: tuple[Path, Path]) -> None:
    _, data = folders
    data.mkdir(parents=True)
    (data / "conversation.key").write_bytes(b"short")
    assert read_key() is None
    with pytest.raises(BorealisError, match=r"conversation\.key: is damaged; remove it"):
        make_key()
    assert (data / "conversation.key").read_bytes() == b"short"


def test_a_data_folder_that_takes_no_files(folders: tuple[Path, Path]) -> None:
    _, data = folders
    data.parent.write_text("a file")
    assert read_key() is None and history_file() is None
    with pytest.raises(BorealisError, match="set BOREALIS_GGUF_DATA"):
        make_key()


def test_a_conversation_outlives_the_cache_folder(model: Model, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    cache, _ = folders
    conversation = model.conversation(options=SHORT)
    conversation.send("Hei på deg!").text()
    conversation.save(tmp_path / "a.state")
    assert not (cache / "conversation.key").exists()
    assert model.load_conversation(tmp_path / "a.state").notice == ""


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("key", ["gone", "another", "without its name in the file"])
def test_without_the_key_the_messages_open(
    nano_q8: Path, model: Model, tmp_path: Path, folders: tuple[Path, Path], key: str, isolate: bool
) -> None:
    """The prompt is computed again, and the answer is the same."""
    path, (_, data) = tmp_path / "a.state", folders
    conversation = model.conversation("Svar kort.", overflow="roll", options=SHORT)
    conversation.send("Hei!").text()
    conversation.save(path)
    saved, expected = list(conversation.messages), conversation.send("Og?").text()
    (data / "conversation.key").unlink()
    if key != "gone":
        make_key()
    if key == "without its name in the file":
        rewrite(path, lambda head: head.pop("key"))
    with load(nano_q8, sampling=GREEDY, context=512, extra_buffers=False, isolate=isolate) as other:
        again = other.load_conversation(path, options=SHORT)
        assert again.messages == saved and again.overflow == "roll"
        assert "sealed with another key" in again.notice and str(data) in again.notice
        answer = again.send("Og?")
        assert answer.text() == expected
        assert answer.finished is not None and answer.finished.usage.cached_tokens == 0


def rewrite(path: Path, change: Any) -> None:
    """Change the head of a saved conversation as somebody without the key would."""
    data = path.read_bytes()
    at = len(MAGIC) + SEAL
    (length,) = struct.unpack_from("<Q", data, at)
    head = json.loads(data[at + 8 : at + 8 + length])
    change(head)
    packed = json.dumps(head).encode()
    path.write_bytes(data[:at] + struct.pack("<Q", len(packed)) + packed + data[at + 8 + length :])


UNC = [{"role": "user", "content": [{"type": "image", "path": "\\\\evil\\share\\x.png"}, {"type": "text", "text": ""}]}]
HOSTILE = {
    "not messages": {"messages": 3, "overflow": "error"},
    "a message that is none": {"messages": ["Hei"], "overflow": "error"},
    "a role that is none": {"messages": [{"role": "root", "content": "Hei"}], "overflow": "error"},
    "an overflow that is none": {"messages": [], "overflow": "everything"},
    "an unhashable overflow": {"messages": [], "overflow": []},
    "content that is none": {"messages": [{"role": "user", "content": {"a": 1}}], "overflow": "error"},
    "a call that is none": {
        "messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}],
        "overflow": "error",
    },
    "bytes that are none": {"messages": [{"role": "user", "content": {"$bytes": 3}}], "overflow": "error"},
    "an image over the network": {"messages": UNC, "overflow": "error"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_messages_of_a_stranger_are_validated(model: Model, tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.state"
    model.conversation(options=SHORT).save(path)
    rewrite(path, lambda head: head.update(key="0" * 16, conversation=HOSTILE[what]))
    with pytest.raises(InvalidInput, match=r"a\.state: damaged, or saved by someone else"):
        model.load_conversation(path)


def test_fields_that_no_message_has_are_left_out(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    message = {"role": "user", "content": "Hei", "__class__": "x"}
    model.conversation(options=SHORT).save(path)
    rewrite(path, lambda head: head.update(key="", conversation={"messages": [message], "overflow": "error"}, more=1))
    assert model.load_conversation(path).messages == [{"role": "user", "content": "Hei"}]


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 10**5, b"", b"{}", b"[" + b"[]," * 10**6 + b"[]]"])
def test_a_head_that_is_no_json_is_refused_at_once(model: Model, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.state"
    began = time.monotonic()
    for head in (content, content.ljust(MAX_UNSEALED + 1)):
        path.write_bytes(MAGIC + bytes(SEAL) + struct.pack("<Q", len(head)) + head)
        with pytest.raises(InvalidInput, match=r"a\.state: damaged"):
            model.load_conversation(path)
    assert time.monotonic() - began < 4


def test_saving_never_destroys_another_file(model: Model, nano_q8: Path, tmp_path: Path) -> None:
    """Not the model itself, nor an image of the conversation."""
    conversation = model.conversation(options=SHORT)
    for name, content in (("model.gguf", nano_q8.read_bytes()), ("fjord.png", b"\x89PNG")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="is there already, and no saved conversation"):
            conversation.save(path)
        assert path.read_bytes() == content
    (tmp_path / "empty.state").touch()
    conversation.save(tmp_path / "empty.state")
    conversation.save(tmp_path / "empty.state")
    assert model.load_conversation(tmp_path / "empty.state").messages == []


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_saving_follows_no_link_and_replaces_no_pipe(model: Model, tmp_path: Path) -> None:
    conversation = model.conversation(options=SHORT)
    conversation.save(tmp_path / "first.state")
    before = (tmp_path / "first.state").read_bytes()
    (tmp_path / "link.state").symlink_to(tmp_path / "first.state")
    conversation.send("Hei").text()
    conversation.save(tmp_path / "link.state")
    assert (tmp_path / "first.state").read_bytes() == before and not (tmp_path / "link.state").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(InvalidInput, match="a folder, device or pipe"):
            conversation.save(path)
        assert path.exists() and not path.is_file()
