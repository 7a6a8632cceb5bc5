"""Answers of the child that tokenizes, kept for the quick check: equal questions about equal bytes have equal answers.

A question is known by a digest of what it is about (a vocabulary, a tokenizer.json), and by one of the request and of
the code that answers: the libraries' files and our own. So a new version of any of them is asked anew.
"""

import hashlib
import importlib.util
import json
import marshal
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..cache import cache_dir
from ..checkpoint.types import KV

KEPT = 32
OF_THE_WEIGHTS = ("general.file_type", "general.quantization_version")
PACKAGES = ("llama_cpp", "tokenizers")
PLAIN_MARSHAL = 2
"""The version of its format in which equal values have equal bytes: later ones tell what is shared between them."""
ANSWERING = (
    "checkpoint/tokenizer_file.py", "convert/pre_type.py", "convert/template_spaces.py", "convert/text_view.py",
    "quality/bare.py", "quality/cut.py", "quality/worker.py", "runtime/vocabulary.py",
)  # fmt: skip
OWN_CODE = tuple(Path(__file__).parents[1] / name for name in ANSWERING)


def key_of(about: bytes, request: Mapping[str, Any]) -> str:
    """The name of the answer to `request`, of which paths are left out; `about` is a digest of what lies there."""
    asked = {name: value for name, value in request.items() if name not in ("gguf", "tokenizer")}
    told = json.dumps([about.hex(), sorted(request), asked, _code()])
    return f"{_start(about)}{hashlib.sha256(told.encode('ascii')).hexdigest()[:40]}"


def _start(about: bytes) -> str:
    return f"{about.hex()[:16]}-"


def is_known(about: bytes) -> bool:
    """Whether anything was asked about this before."""
    return any(_folder().glob(f"{_start(about)}*.json"))


def recall(key: str) -> dict[str, Any] | None:
    """The answer, if it is known, and as it was kept."""
    try:
        seal, _, text = (_folder() / f"{key}.json").read_text(encoding="ascii").partition("\n")
        return json.loads(text) if seal == _seal(text) else None
    except (OSError, ValueError):
        return None


def keep(key: str, answer: Mapping[str, Any]) -> None:
    """Keep `answer`, and of older ones the newest. A folder that cannot be written is no fault."""
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=folder, suffix=".tmp", delete=False) as file:
            text = json.dumps(answer)
            file.write(f"{_seal(text)}\n{text}")
        Path(file.name).replace(folder / f"{key}.json")
        for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()
    except OSError:
        pass


def digest_of_file(path: Path) -> bytes:
    """Of all that is in a file; read once, as long as it looks the same."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(4)
def _digest(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def digest_of_vocabulary(kv: Sequence[KV]) -> bytes:
    """Of all that a GGUF's metadata says, save what its weights are encoded as and how they came to be."""
    told = [
        (entry.key, int(entry.type), entry.value, entry.item_type and int(entry.item_type))
        for entry in kv
        if entry.key not in OF_THE_WEIGHTS and not entry.key.startswith("quantize.")
    ]
    return hashlib.sha256(marshal.dumps(told, PLAIN_MARSHAL)).digest()


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _folder() -> Path:
    return cache_dir() / "answers"


def _code() -> list[list[Any]]:
    """Name, size and time of every file that has a part in an answer."""
    files = list(OWN_CODE)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            root = Path(spec.origin).parent
            files += sorted(path for path in (*root.glob("*"), *root.glob("lib/*")) if path.is_file())
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
