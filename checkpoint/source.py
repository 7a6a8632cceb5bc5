"""Resolves the SOURCE argument: a checkpoint folder, a GGUF file, or a model on the Hugging Face Hub."""

import re
from pathlib import Path

from ..errors import InvalidInput
from .adapter_folder import instead_of_model
from .file_access import exists, has_entry, open_regular, quote, recognize, shown
from .folder import Checkpoint, open_checkpoint
from .gguf import GGUFFile, read_gguf
from .hub.download import EXAMPLE, SCHEMES, Progress, download, parse_id
from .hub.errors import redact
from .hub.stream import open_stream
from .other_formats import other_weights
from .quantized_checkpoint import warn_of_settings
from .types import UNQUANTIZED
from .unsupported_folder import what_instead


def read_source(
    source: str | Path,
    *,
    revision: str | None = None,
    stream: bool = False,
    use_card: bool = True,
    on_progress: Progress | None = None,
) -> Checkpoint | GGUFFile:
    """Reads the headers of `source`, after downloading it if it is a Hub id ("org/name", "hf://org/name@revision").

    A path that exists wins over a Hub id. A folder is a checkpoint if it holds config.json, else it must hold
    exactly one F32, F16 or BF16 GGUF. With `stream`, weights stay on the Hub and are read by ranges. Without
    `use_card`, the checkpoint's README.md is ignored.
    Raises InvalidInput for an unknown source, damaged files and a refusal by the Hub; BorealisError when the Hub
    cannot be reached.
    """
    text = str(source)
    if "\0" in text or not text:
        raise InvalidInput(f"{quote(text)}: not a path and not a Hub id such as {EXAMPLE}")
    path = Path(source)
    if not text.startswith(SCHEMES) and exists(path):
        if revision is not None:
            raise InvalidInput(f"{path}: lies on this machine, where revision {quote(revision)} means nothing; drop it")
        return _local_folder(path, use_card) if path.is_dir() else _local_file(path)
    repo_id, named = parse_id(text) if isinstance(source, str) else (None, None)
    if repo_id is None:
        hint = f", and not a Hub id such as {EXAMPLE}" if isinstance(source, str) else ""
        raise InvalidInput(f"{redact(shown(text))}: no such file or folder{hint}")
    if revision is not None and named not in (None, revision):
        raise InvalidInput(f"{redact(text)}: names revision {named}, but {quote(revision)} is asked for; keep one")
    if stream:
        return _with_quantization_warning(open_stream(repo_id, revision or named, on_progress, use_card=use_card))
    folder = download(repo_id, revision or named, on_progress)
    return _with_quantization_warning(open_checkpoint(folder, repo_id=repo_id, use_card=use_card))


def _with_quantization_warning(checkpoint: Checkpoint) -> Checkpoint:
    warn_of_settings(checkpoint.path, checkpoint.config)
    return checkpoint


# ---- on this machine


def _local_file(path: Path) -> GGUFFile:
    file, _ = open_regular(path)
    with file:
        head = file.read(64)
    if head.startswith(b"GGUF"):
        return read_gguf(path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise InvalidInput(f"{path}: one file of a checkpoint; give the folder it lies in")
    raise InvalidInput(f"{path}: neither a GGUF nor a checkpoint folder but {recognize(head) or 'something else'}")


def _local_folder(path: Path, use_card: bool) -> Checkpoint | GGUFFile:
    if has_entry(path / "config.json"):
        return _with_quantization_warning(open_checkpoint(path, use_card=use_card))
    names = sorted(path.glob("*.gguf"))
    read = [read_gguf(file) for file in names if not _is_later_shard(file.name)]
    usable = [file for file in read if _is_unquantized(file)]
    if len(usable) == 1:
        return usable[0]
    if usable:
        listed = _listed([file.path for file in usable])
        raise InvalidInput(f"{path}: holds {len(usable)} unquantized GGUFs ({listed}); give one of them")
    if not names and (instead := what_instead(path) or instead_of_model(path)):
        raise InvalidInput(f"{path}: {instead}")
    also = f", and its GGUFs ({_listed(names)}) are quantized or no models; give one of them" if names else ""
    other = "" if names else other_weights(path)
    also += "." * bool(other) + other
    raise InvalidInput(f"{path}: holds no config.json (a checkpoint) and no F32, F16 or BF16 GGUF{also}")


def _is_later_shard(name: str) -> bool:
    match = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
    return match is not None and int(match[1]) > 1


def _is_unquantized(file: GGUFFile) -> bool:
    """Whether a GGUF is a text model whose tensors are all F32, F16 or BF16."""
    if file.value("general.type", "model") != "model" or file.value("general.architecture") in (None, "clip"):
        return False
    return bool(file.tensors) and all(slice.type in UNQUANTIZED for slice in file.tensors.values())


def _listed(paths: list[Path]) -> str:
    return ", ".join(shown(path.name) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
