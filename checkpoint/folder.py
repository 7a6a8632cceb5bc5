"""Opens a checkpoint folder: reads config.json and locates the bytes of every tensor."""

import logging
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .adapter_folder import instead_of_model
from .file_access import extended, has_entry, open_regular, quote, recognize, shown
from .other_formats import other_weights
from .quantized_checkpoint import refuse_dtypes, refuse_leftovers
from .safetensors import DTYPES, UnknownDtype, read_header
from .strict_json import MAX_TOKENIZER_JSON, read_json_object
from .types import Slice
from .unsupported_folder import what_instead

__all__ = ["MAX_TOKENIZER_JSON", "Checkpoint", "open_checkpoint", "read_json_object"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[^/\\:\0]{1,200}\.safetensors")

DERIVED = ".rotary_emb.inv_freq"
"""Buffers that transformers computes from config.json: trainers drop them but keep them in the index."""

Headers = Mapping[str, Mapping[str, Slice]]

log = logging.getLogger("borealis_gguf")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files agree with each other.

    `tensors` is in llama.cpp's order: shard files by name, and inside a shard tensors by name, as strings. `keep`
    owns a temporary folder, which is deleted with it. Without `use_card`, README.md is ignored.
    """

    path: Path
    repo_id: str | None
    config: dict[str, Any]
    tensors: dict[str, Slice]
    keep: object = None
    use_card: bool = True
    warned: set[str] = field(default_factory=set, repr=False, compare=False)

    def warn(self, text: str) -> None:
        """Logs a warning once per checkpoint, though several GGUF files may be written from it."""
        if text not in self.warned:
            self.warned.add(text)
            _warn(text)

    @property
    def stem(self) -> str:
        """The model's name in output file names: the repository's name, else the folder's."""
        return self.repo_id.rpartition("/")[2] if self.repo_id else self.path.resolve().name

    def file(self, name: str) -> Path | None:
        """Returns the path of a companion file ("tokenizer.json"), or None without one.

        Raises InvalidInput for a link that leads nowhere or out of the checkpoint.
        """
        path = self.path / name
        return own_file(self.path, path) if has_entry(path) else None


def open_checkpoint(
    path: Path,
    *,
    repo_id: str | None = None,
    remote: Headers | None = None,
    keep: object = None,
    use_card: bool = True,
) -> Checkpoint:
    """Opens a folder of config.json and safetensors, single or sharded, without reading weights.

    `repo_id` defaults to the repository of a snapshot in the Hub's cache. `remote` maps the names of safetensors files
    that stay on the Hub to their headers. Harmless contradictions are logged as warnings.
    Raises InvalidInput for files that are missing, damaged, contradict each other, or are links out of the checkpoint.
    """
    remote = remote or {}
    path = extended(path)
    config_path = path / "config.json"
    if not has_entry(config_path):
        if not path.is_dir():
            raise InvalidInput(_not_a_folder(path))
        missing = f"holds no config.json; is this a checkpoint folder?{_other_contents(path)}"
        raise InvalidInput(f"{path}: {instead_of_model(path) or missing}")
    config = read_json_object(own_file(path, config_path))
    try:
        tensors = _read_tensors(path, remote)
    except UnknownDtype as error:
        refuse_dtypes(path, error.dtypes, config, DTYPES)
        raise
    refuse_leftovers(path, tensors, config)
    if not tensors:
        raise InvalidInput(f"{path}: the safetensors hold no tensors")
    return Checkpoint(path, repo_id or _cached_repo_id(path), config, tensors, keep, use_card)


def own_file(folder: Path, path: Path) -> Path:
    """Returns `path`; refuses links out of the checkpoint, except into the blobs of the Hub's cache."""
    try:
        target, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise InvalidInput(f"{path}: a link that leads nowhere; copy the file itself there") from error
    allowed = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        # blobs of the repository, and blobs that the whole cache shares
        allowed += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
    if not any(target.is_relative_to(root) for root in allowed):
        raise InvalidInput(f"{path}: a link out of the checkpoint, to {target}; copy the file itself there")
    return path


def _warn(text: str) -> None:
    log.warning("%s", text)


def _read_tensors(path: Path, remote: Headers) -> dict[str, Slice]:
    if SINGLE not in remote and not has_entry(path / SINGLE):
        return _read_sharded(path, remote)
    if has_entry(path / INDEX):
        _warn(f"{path}: holds both {SINGLE} and {INDEX}; the former is used")
    else:
        _warn_unused(path, remote, {SINGLE}, f"{SINGLE} is the whole model")
    return _tensors_of_file(path / SINGLE, remote)


def _warn_unused(path: Path, remote: Headers, used: Set[str], reason: str) -> None:
    """Warns of unused safetensors, except Mistral's consolidated files, which hold the same weights."""
    names = {file.name for file in path.glob("*.safetensors")} | remote.keys()
    unused = sorted(name for name in names - used if not name.startswith("consolidated"))
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        _warn(f"{path}: not used: {', '.join(map(shown, unused[:3]))}{more}; {reason}")


def _tensors_of_file(path: Path, remote: Headers) -> dict[str, Slice]:
    """Returns the tensors of a safetensors file of the folder, sorted by name."""
    header = remote[path.name] if path.name in remote else read_header(own_file(path.parent, path))
    return dict(sorted(header.items()))


def _read_sharded(path: Path, remote: Headers) -> dict[str, Slice]:
    index = path / INDEX
    if not has_entry(index):
        missing = f"holds neither {SINGLE} nor {INDEX}.{_other_contents(path)}"
        raise InvalidInput(f"{path}: {instead_of_model(path) or missing}")
    document = read_json_object(own_file(path, index))
    weight_map = _weight_map(index, document.get("weight_map"))
    tensors: dict[str, Slice] = {}
    for shard in sorted(set(weight_map.values())):
        _add_shard(tensors, path / shard, remote)
    _compare_names(index, weight_map, tensors)
    _compare_size(index, document.get("metadata"), tensors)
    _warn_unused(path, remote, set(weight_map.values()), f"{INDEX} names the files of the model")
    return tensors


def _weight_map(index: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise InvalidInput(f"{index}: weight_map must map tensor names to shard files")
    for name, shard in value.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard) or not shard.isprintable():
            entry = f"{quote(name)} is mapped to {quote(str(shard))}"
            raise InvalidInput(f"{index}: {entry}; a shard is the plain name of a .safetensors file in this folder")
    return value


def _add_shard(tensors: dict[str, Slice], shard: Path, remote: Headers) -> None:
    if shard.name not in remote and not has_entry(shard):
        raise InvalidInput(f"{shard}: missing, though {INDEX} lists it; fetch it again")
    for name, slice in _tensors_of_file(shard, remote).items():
        if name in tensors:
            raise InvalidInput(f"{shard}: {quote(name)} also lies in {tensors[name].path.name}")
        tensors[name] = slice


def _compare_names(index: Path, weight_map: dict[str, str], tensors: dict[str, Slice]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors and name.endswith(DERIVED):
            continue
        if name not in tensors:
            raise InvalidInput(f"{index}: {quote(name)} is listed, but {shard} does not hold it")
        if tensors[name].path.name != shard:
            raise InvalidInput(f"{index}: {quote(name)} is mapped to {shard}, but lies in {tensors[name].path.name}")
    unlisted = next((name for name in tensors if name not in weight_map), None)
    if unlisted is not None:
        raise InvalidInput(f"{index}: does not list {quote(unlisted)}, which lies in {tensors[unlisted].path.name}")


def _compare_size(index: Path, metadata: Any, tensors: dict[str, Slice]) -> None:
    """Warns of a wrong total_size, which is common after merging adapters; names and shards are compared before."""
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(slice.nbytes for slice in tensors.values())
    if claimed is not None and claimed != total:
        _warn(f"{index}: total_size is {str(claimed)[:30]}, but the tensors have {total} bytes")


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such folder"
    file, _ = open_regular(path)
    with file:
        head = file.read(64)
    if head.startswith(b"GGUF"):
        return f"{path}: a GGUF file; a checkpoint folder (config.json and .safetensors) is needed here"
    file_format = recognize(head)
    return f"{path}: not a folder but {file_format}" if file_format else f"{path}: a file; give the folder it lies in"


def _other_contents(path: Path) -> str:
    """Describes what a folder without the expected weights holds, with advice; empty if nothing is recognized."""
    if instead := what_instead(path):
        return f" It is {instead}"
    for pattern, advice in (
        ("*.safetensors", f"It holds {{}}: fetch {INDEX} too, or rename a single file to {SINGLE}."),
        ("*.gguf", "It holds {}: give that file itself."),
    ):
        names = sorted(match.name for match in path.glob(pattern))
        if names:
            return " " + advice.format(shown(names[0]))
    return other_weights(path)


def _cached_repo_id(path: Path) -> str | None:
    """Returns "org/name" for a path …/models--org--name/snapshots/COMMIT, else None."""
    path = path.absolute()
    if path.parent.name != "snapshots" or not path.parents[1].name.startswith("models--"):
        return None
    return path.parents[1].name.removeprefix("models--").replace("--", "/")
