"""What a user's SOURCE means: a checkpoint folder, a GGUF, or a model on the Hugging Face Hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InvalidInput
from .adapter_folder import instead_of_model
from .file_access import exists, open_regular, quote, recognize, shown
from .folder import Headers
from .gguf import read_gguf
from .hub.download import EXAMPLE, SCHEMES, Progress, download, parse_id
from .hub.errors import redact
from .hub.stream import open_stream
from .other_formats import other_weights
from .types import GGMLQuantizationType
from .unsupported_folder import what_instead

UNQUANTIZED = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint or a GGUF is, on this machine. `revision` is the commit a Hub id stood for.

    `remote` has the headers of weights that stay on the Hub; `path` is then a folder that lives as long as `keep`.
    """

    kind: Literal["checkpoint", "gguf"]
    path: Path
    repo_id: str | None = None
    revision: str | None = None
    remote: Headers | None = None
    keep: object = None


def resolve_source(
    source: str | Path, *, revision: str | None = None, stream: bool = False, on_progress: Progress | None = None
) -> Source:
    """Find out what `source` is, and download it if it is a Hub id ("org/name", "hf://org/name@revision").

    A path that exists wins over a Hub id. A folder is a checkpoint if it holds config.json, else it must hold
    exactly one F32, F16 or BF16 GGUF. With `stream`, a Hub id's weights stay on the Hub, to be read there.
    Raises InvalidInput when nothing fits, and when the Hub refuses; BorealisError when it cannot be reached.
    """
    text = str(source)
    if "\0" in text or not text:
        raise InvalidInput(f"{quote(text)}: not a path and not a Hub id such as {EXAMPLE}")
    path = Path(source)
    if not text.startswith(SCHEMES) and exists(path):
        if revision is not None:
            raise InvalidInput(f"{path}: lies on this machine, where revision {quote(revision)} means nothing; drop it")
        return _local_folder(path) if path.is_dir() else _local_file(path)
    repo_id, named = parse_id(text) if isinstance(source, str) else (None, None)
    if repo_id is None:
        hint = f", and not a Hub id such as {EXAMPLE}" if isinstance(source, str) else ""
        raise InvalidInput(f"{redact(shown(text))}: no such file or folder{hint}")
    if revision is not None and named not in (None, revision):
        raise InvalidInput(f"{redact(text)}: names revision {named}, but {quote(revision)} is asked for; keep one")
    if stream:
        found = open_stream(repo_id, revision or named, on_progress)
        return Source("checkpoint", found.folder.path, repo_id, found.commit, found.headers, found.folder)
    folder = download(repo_id, revision or named, on_progress)
    return Source("checkpoint", folder, repo_id, folder.name)


# ---- on this machine


def _local_file(path: Path) -> Source:
    file, _ = open_regular(path)
    with file:
        head = file.read(64)
    if head.startswith(b"GGUF"):
        return Source("gguf", path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise InvalidInput(f"{path}: one file of a checkpoint; give the folder it lies in")
    raise InvalidInput(f"{path}: neither a GGUF nor a checkpoint folder but {recognize(head) or 'something else'}")


def _local_folder(path: Path) -> Source:
    if (path / "config.json").exists():
        return Source("checkpoint", path)
    names = sorted(path.glob("*.gguf"))
    usable = [file for file in names if not _is_later_shard(file.name) and _is_master(file)]
    if len(usable) == 1:
        return Source("gguf", usable[0])
    if usable:
        raise InvalidInput(f"{path}: holds {len(usable)} unquantized GGUFs ({_listed(usable)}); give one of them")
    if not names and (instead := what_instead(path) or instead_of_model(path)):
        raise InvalidInput(f"{path}: {instead}")
    also = f", and its GGUFs ({_listed(names)}) are quantized or no models; give one of them" if names else ""
    other = "" if names else other_weights(path)
    also += "." * bool(other) + other
    raise InvalidInput(f"{path}: holds no config.json (a checkpoint) and no F32, F16 or BF16 GGUF{also}")


def _is_later_shard(name: str) -> bool:
    match = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
    return match is not None and int(match[1]) > 1


def _is_master(path: Path) -> bool:
    """Whether a GGUF is a text model that has not been quantized. One that cannot be read is an error, not a no."""
    file = read_gguf(path)
    if file.value("general.type", "model") != "model" or file.value("general.architecture") in (None, "clip"):
        return False
    return bool(file.tensors) and all(slice.type in UNQUANTIZED for slice in file.tensors.values())


def _listed(paths: list[Path]) -> str:
    return ", ".join(shown(path.name) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
