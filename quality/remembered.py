"""Answers of the child that tokenizes, kept for the quick check: equal questions about equal bytes have equal answers.

A question is known by a digest of the request, of what it is about (a vocabulary, a tokenizer.json), and of the code
that answers: the libraries' files and our own. So a new version of any of them is asked anew.
"""

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.types import KV
from ..pipeline.layout import encode_kv
from ..runtime.cache import cache_dir

KEPT = 32
OF_THE_WEIGHTS = ("general.file_type", "general.quantization_version")
PACKAGES = ("llama_cpp", "tokenizers")
ANSWERING = ("quality/worker.py", "quality/bare.py", "runtime/vocabulary.py", "convert/pre_type.py",
             "convert/template_spaces.py", "convert/text_view.py")  # fmt: skip
OWN_CODE = tuple(Path(__file__).parents[1] / name for name in ANSWERING)


def key_of(about: bytes, request: Mapping[str, Any]) -> str:
    """The name of the answer to `request`, of which paths are left out; `about` is a digest of what lies there."""
    asked = {name: value for name, value in request.items() if name not in ("gguf", "tokenizer")}
    told = json.dumps([about.hex(), sorted(request), asked, _code()])
    return hashlib.sha256(told.encode("ascii")).hexdigest()[:40]


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
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def digest_of_vocabulary(kv: Sequence[KV]) -> bytes:
    """Of all that a GGUF's metadata says, save what its weights are encoded as and how they came to be."""
    digest = hashlib.sha256()
    for entry in kv:
        if entry.key not in OF_THE_WEIGHTS and not entry.key.startswith("quantize."):
            digest.update(encode_kv(entry))
    return digest.digest()


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
