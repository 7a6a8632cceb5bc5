"""A saved conversation: its messages and its KV cache in one file, with an HMAC seal.

    magic "BOREALIS-GGUF CONVERSATION 2\\n" · seal, 32 bytes: HMAC-SHA256 of the next two · u64 length of the head
    head, as `wire_format` packs it: key (its `key_id`), model (see `model_identity`), conversation, trace (the tokens
         in the cache), size and SHA-256 of the state
    state, the KV cache in llama.cpp's format

llama.cpp does not validate a state, so only one that this user wrote on this machine is read: the key of the seal lies
in the user's data folder. Of a file with another key's seal the messages are read, which need no trust. Before the seal
is checked no more than MAX_HEAD is read, and after it no more than the head says.
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ..atomic_file import PRIVATE, write_file
from ..checkpoint.file_access import open_regular
from ..checkpoint.gguf import read_gguf
from ..checkpoint.strict_json import parse_object
from ..errors import InvalidInput
from ..user_data import data_dir
from .conversation_key import NAME as KEY_NAME
from .conversation_key import key_id, make_key, read_key
from .events import Overflow
from .process.wire_format import pack, unpack
from .prompting.prompt import check_messages, image_parts

MAGIC = b"BOREALIS-GGUF CONVERSATION 2\n"
SEAL = 32
MAX_HEAD = 256 << 20
"""More than any context takes as text; images given as bytes are part of it."""

MAX_UNSEALED = 16 << 20
"""The most that is parsed of a file whose seal cannot be checked."""

MESSAGE = ("role", "content", "tool_calls", "tool_call_id", "name")

SAMPLE_BYTES = 4096
"""Bytes of each sample of a tensor that identifies a model file."""


@dataclass(frozen=True, slots=True)
class SavedConversation:
    """What a file holds. Without the key of its seal: the conversation alone, and a `notice` that says so."""

    conversation: dict[str, Any]
    tokens: list[int] = field(default_factory=list)
    state: bytes = b""
    notice: str = ""


def write_state(path: Path, model: Any, conversation: dict[str, Any], tokens: list[int], state: bytes) -> None:
    """Write the file beside `path` and rename it. `model` is its `model_identity`, `tokens` are those in the cache.

    Raises InvalidInput for a conversation that is too large and where `path` is another file, BorealisError when the
    folder takes no file.
    """
    key = make_key()
    about = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    head = pack({"key": key_id(key), "model": model, "conversation": conversation, "trace": tokens, "state": about})
    if len(head) > MAX_HEAD:
        raise InvalidInput(f"{path}: a conversation of {len(head)} bytes; {MAX_HEAD} can be kept: give images as files")
    if not may_replace(path):
        raise InvalidInput(f"{path}: is there already, and no saved conversation; choose another name")
    body = struct.pack("<Q", len(head)) + head
    write_file(path, (MAGIC, _seal(key, body), body, state), PRIVATE)


def may_replace(path: Path) -> bool:
    """Whether a conversation may be saved as `path`: over nothing, an empty file, or a saved conversation."""
    if not path.is_file():
        return True  # else `write_file` refuses what no file is
    file, size = open_regular(path)
    with file:
        return not size or file.read(len(MAGIC)) == MAGIC


def read_state(path: Path, model: Any, name: str) -> SavedConversation:
    """What `write_state` wrote. `model` is as there, `name` is shown in errors.

    Raises InvalidInput for any other file, a damaged one, and for another model.
    """
    file, size = open_regular(path)
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidInput(f"{path}: not a saved conversation")
        seal, length = file.read(SEAL), file.read(8)
        if (nbytes := int.from_bytes(length, "little")) > min(MAX_HEAD, size):
            raise _untrusted(path)
        head, key = file.read(nbytes), read_key()
        if key is None or not hmac.compare_digest(seal, _seal(key, length + head)):
            return _read_without_key(path, head, model, name, key)
        about = unpack(head)
        _check_model(path, about, model, name)
        state = file.read(min(about["state"]["size"], size) + 1)
    if len(state) != about["state"]["size"] or hashlib.sha256(state).hexdigest() != about["state"]["sha256"]:
        raise _untrusted(path)
    return SavedConversation(about["conversation"], about["trace"], state)


def _read_without_key(path: Path, head: bytes, model: Any, name: str, key: bytes | None) -> SavedConversation:
    """The messages of a file that another key seals, validated as anybody's."""
    if len(head) > MAX_UNSEALED:
        raise _untrusted(path)
    try:
        about = parse_object(head, str(path), limit=MAX_UNSEALED)
        conversation = _plain_conversation(unpack(head)["conversation"])
    except (InvalidInput, ValueError, TypeError, KeyError, RecursionError):
        raise _untrusted(path) from None
    if key is not None and about.get("key") == key_id(key):
        raise _untrusted(path)
    _check_model(path, about, model, name)
    where = data_dir() / KEY_NAME
    return SavedConversation(
        conversation, notice=f"{path}: sealed with another key than {where}; its messages were read, and the next "
        "answer computes them again"
    )  # fmt: skip


def _plain_conversation(found: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation of anybody's file with the fields that are known. Raises ValueError, TypeError, InvalidInput."""
    if found["overflow"] not in get_args(Overflow):
        raise ValueError("overflow")
    messages = [{name: message[name] for name in MESSAGE if name in message} for message in found["messages"]]
    check_messages(messages)
    for message in messages:
        texts = [message.get(name, "") for name in ("tool_call_id", "name")]
        for call in message.get("tool_calls", []):
            texts += [call["id"], call["name"], call["arguments"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a message")
    if any(str(part.get("path", "")).startswith(("//", "\\\\")) for part in image_parts(messages)):
        raise ValueError("an image on another machine, to which Windows would send the user's name and password")
    return {"messages": messages, "overflow": found["overflow"]}


def _check_model(path: Path, head: Mapping[str, Any], model: Any, name: str) -> None:
    """Raises InvalidInput for a conversation with another model."""
    saved = head.get("model")
    if saved == model:
        return
    if isinstance(saved, dict) and saved.get("file") == model["file"]:
        what = f"a conversation with {name}, but with other adapters or scales; load it with the same ones"
    else:
        what = f"a conversation with another model than {name}; load that one"
    raise InvalidInput(f"{path}: {what}")


def _untrusted(path: Path) -> InvalidInput:
    return InvalidInput(f"{path}: damaged, or saved by someone else; it cannot be trusted")


def model_identity(model: Path, loras: Sequence[tuple[Path, float]] = ()) -> dict[str, Any]:
    """What a state depends on, as JSON: the model's file, its adapters and their scales."""
    return {"file": _file_identity(model), "loras": [[_file_identity(path), scale] for path, scale in loras]}


def _file_identity(path: Path) -> str:
    """SHA-256 of a GGUF's header, and of the beginning, middle and end of every tensor.

    Training, merging and quantizing change whole tensors. To read a large model as a whole would take seconds.
    """
    header = read_gguf(path)
    digest = hashlib.sha256()
    with ExitStack() as opened:
        files = {
            shard: opened.enter_context(open_regular(shard)[0])
            for shard in dict.fromkeys([header.path, *(tensor.path for tensor in header.tensors.values())])
        }
        digest.update(files[header.path].read(header.data_offset))
        for name, tensor in header.tensors.items():
            digest.update(f"{name} {tensor.type.name} {tensor.shape}".encode("utf-8", "surrogateescape"))
            for start in _sample_offsets(tensor.nbytes):
                files[tensor.path].seek(tensor.offset + start)
                digest.update(files[tensor.path].read(min(SAMPLE_BYTES, tensor.nbytes - start)))
    return digest.hexdigest()


def _sample_offsets(nbytes: int) -> Sequence[int]:
    if nbytes <= 3 * SAMPLE_BYTES:
        return range(0, nbytes, SAMPLE_BYTES)
    return 0, (nbytes - SAMPLE_BYTES) // 2, nbytes - SAMPLE_BYTES


def _seal(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()
