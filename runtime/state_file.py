"""A conversation on disk: its messages, and the keys and values computed of it, sealed.

    magic "BOREALIS-GGUF CONVERSATION 1\\n" · seal, 32 bytes: HMAC-SHA256 of all that follows · u64 length of the head
    head, JSON: model (SHA-256 of the GGUF's header and its size), conversation, trace · state, llama.cpp's own bytes

llama.cpp believes what it reads back, so only a file that this user's program wrote on this machine is read: the key
of the seal lies in the user's cache folder.
"""

import hashlib
import hmac
import json
import os
import secrets
import struct
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..cache import cache_dir
from ..checkpoint.files import open_regular
from ..checkpoint.gguf import read_gguf
from ..errors import BorealisError, InvalidInput

MAGIC = b"BOREALIS-GGUF CONVERSATION 1\n"
SEAL = 32
MAX_HEAD = 64 << 20


def write_state(path: Path, model: Path, conversation: dict[str, Any], trace: list[int], state: bytes) -> None:
    """Write all of it beside `path` and rename. Raises BorealisError when the folder takes no file."""
    head = json.dumps({"model": model_identity(model), "conversation": conversation, "trace": trace}).encode("ascii")
    body = struct.pack("<Q", len(head)) + head
    seal = hmac.new(_key(), body, hashlib.sha256)
    seal.update(state)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            undo = ExitStack()
            undo.callback(Path(file.name).unlink, missing_ok=True)
            with undo:
                for part in (MAGIC, seal.digest(), body, state):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                file.close()  # Windows renames no open file
                Path(file.name).replace(path)
                undo.pop_all()
    except OSError as error:
        raise BorealisError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_state(path: Path, model: Path) -> tuple[dict[str, Any], list[int], bytes]:
    """The conversation, the trace and the state. Raises InvalidInput for any file `write_state` did not write here."""
    file, size = open_regular(path)
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidInput(f"{path}: not a saved conversation")
        seal, rest = file.read(SEAL), file.read(size)
    if not hmac.compare_digest(seal, hmac.new(_key(), rest, hashlib.sha256).digest()):
        raise InvalidInput(f"{path}: damaged, or saved by someone else or on another machine; it cannot be trusted")
    length = struct.unpack_from("<Q", rest)[0]
    head = json.loads(rest[8 : 8 + length])
    if head["model"] != model_identity(model):
        raise InvalidInput(f"{path}: a conversation with another model than {model.name}; load that one")
    return head["conversation"], head["trace"], rest[8 + length :]


def model_identity(model: Path) -> str:
    """Changes when the file's metadata, tensors or size do."""
    header = read_gguf(model)
    digest = hashlib.sha256(str(model.stat().st_size).encode("ascii"))
    with model.open("rb") as file:
        digest.update(file.read(header.data_offset))
    return digest.hexdigest()


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
