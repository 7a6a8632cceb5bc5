"""A saved conversation: its messages and its KV cache in one file, with an HMAC seal.

    magic "BOREALIS-GGUF CONVERSATION 2\\n" · seal, 32 bytes: HMAC-SHA256 of the next two · u64 length of the head
    head, as `wire_format` packs it: model (see `model_identity`), conversation, trace (the tokens in the cache), size
         and SHA-256 of the state
    state, the KV cache in llama.cpp's format

llama.cpp does not validate a state, so only a file that this user wrote on this machine is read: the key of the seal
lies in the user's cache folder. Before the seal is checked no more than MAX_HEAD is read, and after it no more than the
head says.
"""

import hashlib
import hmac
import os
import secrets
import struct
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoint.file_access import open_regular
from ..checkpoint.gguf import read_gguf
from ..errors import BorealisError, InvalidInput
from ..machine_cache import cache_dir
from .process.wire_format import pack, unpack

MAGIC = b"BOREALIS-GGUF CONVERSATION 2\n"
SEAL = 32
MAX_HEAD = 256 << 20
"""More than any context takes as text; images given as bytes are part of it."""

SAMPLE_BYTES = 4096
"""Bytes of each sample of a tensor that identifies a model file."""


def write_state(path: Path, model: Any, conversation: dict[str, Any], tokens: list[int], state: bytes) -> None:
    """Write the file beside `path` and rename it. `model` is its `model_identity`, `tokens` are those in the cache.

    Raises InvalidInput for a conversation that is too large, BorealisError when the folder takes no file.
    """
    about = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    head = pack({"model": model, "conversation": conversation, "trace": tokens, "state": about})
    if len(head) > MAX_HEAD:
        raise InvalidInput(f"{path}: a conversation of {len(head)} bytes; {MAX_HEAD} can be kept: give images as files")
    body = struct.pack("<Q", len(head)) + head
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            undo = ExitStack()
            undo.callback(Path(file.name).unlink, missing_ok=True)
            with undo:
                for part in (MAGIC, _seal(body), body, state):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                file.close()  # Windows renames no open file
                Path(file.name).replace(path)
                undo.pop_all()
    except OSError as error:
        raise BorealisError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_state(path: Path, model: Any, name: str) -> tuple[dict[str, Any], list[int], bytes]:
    """The conversation, its tokens and the state. `model` is as in `write_state`, `name` is shown in errors.

    Raises InvalidInput for a file that `write_state` did not write on this machine, or for another model.
    """
    file, size = open_regular(path)
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidInput(f"{path}: not a saved conversation")
        seal, length = file.read(SEAL), file.read(8)
        body = length + file.read(min(int.from_bytes(length, "little"), MAX_HEAD, size))
        if not hmac.compare_digest(seal, _seal(body)):
            raise _untrusted(path)
        head = unpack(body[8:])
        if head["model"] != model:
            raise InvalidInput(f"{path}: {_mismatch(head['model'], model, name)}")
        state = file.read(min(head["state"]["size"], size) + 1)
    if len(state) != head["state"]["size"] or hashlib.sha256(state).hexdigest() != head["state"]["sha256"]:
        raise _untrusted(path)
    return head["conversation"], head["trace"], state


def _untrusted(path: Path) -> InvalidInput:
    return InvalidInput(f"{path}: damaged, or saved by someone else or on another machine; it cannot be trusted")


def _mismatch(saved: Any, model: Any, name: str) -> str:
    if saved["file"] != model["file"]:
        return f"a conversation with another model than {name}; load that one"
    return f"a conversation with {name}, but with other adapters or scales; load it with the same ones"


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


def _seal(body: bytes) -> bytes:
    return hmac.new(_key(), body, hashlib.sha256).digest()


def _key() -> bytes:
    path = cache_dir() / "conversation.key"
    try:
        held = path.read_bytes()
        if len(held) == SEAL:
            return held
    except OSError:
        pass
    key = secrets.token_bytes(SEAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
    except OSError as error:
        raise BorealisError(
            f"{path}: cannot be written ({error.strerror or error}); set BOREALIS_GGUF_CACHE"
        ) from error
    return key
