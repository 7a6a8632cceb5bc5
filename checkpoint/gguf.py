"""Reads the header of a GGUF model: one file, or all shards of a split one."""

import re
from dataclasses import replace
from pathlib import Path

from gguf.constants import GGUFValueType

from ..errors import InvalidInput
from .file_access import extended, quote
from .gguf_header import DAMAGED, GGUFFile, read_header
from .types import Slice

__all__ = ["GGUFFile", "read_gguf"]

SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def read_gguf(path: Path) -> GGUFFile:
    """Reads and checks the header of a GGUF v2 or v3; given the first shard of a split file, reads all shards.

    Raises InvalidInput, naming file, byte and field, for a file that llama.cpp would not load.
    """
    first = read_header(extended(path))
    count = _split_key(first, "split.count", GGUFValueType.UINT16, default=0)
    return _join_shards(first, count) if count > 1 else first


def _split_key(file: GGUFFile, key: str, type: GGUFValueType, default: int | None = None) -> int:
    entry = file.find(key)
    if entry is None:
        if default is not None:
            return default
        raise InvalidInput(f"{file.path}: {key} is missing from a shard of a split model; {DAMAGED}")
    if entry.type is not type:
        raise InvalidInput(f"{file.path}: {key} is {entry.type.name}, not {type.name}")
    return entry.value


def _join_shards(first: GGUFFile, count: int) -> GGUFFile:
    """Joins all shards: the metadata of the first, and the tensors of every shard in order."""
    match = SPLIT_NAME.fullmatch(first.path.name)
    number = _split_key(first, "split.no", GGUFValueType.UINT16)
    if match is None or int(match[3]) != count or int(match[2]) != number + 1:
        pattern = f"NAME-{number + 1:05d}-of-{count:05d}.gguf"
        raise InvalidInput(f"{first.path}: shard {number + 1} of {count} must be named {pattern}; rename it")
    shards = [first.path.with_name(f"{match[1]}-{no:05d}-of-{count:05d}.gguf") for no in range(1, count + 1)]
    if number:
        raise InvalidInput(f"{first.path}: shard {number + 1} of {count}; give the first one, {shards[0].name}")
    total = _split_key(first, "split.tensors.count", GGUFValueType.INT32)
    tensors = dict(first.tensors)
    for no, path in enumerate(shards[1:], 1):
        _add_shard(tensors, path, no, count, total)
    if len(tensors) != total:
        raise InvalidInput(f"{first.path}: split.tensors.count is {total}, but the shards hold {len(tensors)}")
    return replace(first, tensors=tensors)


def _add_shard(tensors: dict[str, Slice], path: Path, no: int, count: int, total: int) -> None:
    if not path.exists():
        raise InvalidInput(f"{path}: missing: shard {no + 1} of {count}; put it beside the first one")
    shard = read_header(path)
    claimed = tuple(_split_key(shard, key, GGUFValueType.UINT16) for key in ("split.no", "split.count"))
    if claimed != (no, count):
        raise InvalidInput(f"{path}: says it is shard {claimed[0] + 1} of {claimed[1]}, not {no + 1} of {count}")
    duplicate = next((name for name in shard.tensors if name in tensors), None)
    if duplicate is not None:
        raise InvalidInput(f"{path}: {quote(duplicate)} also lies in an earlier shard")
    tensors.update(shard.tensors)
    if len(tensors) > total:
        raise InvalidInput(f"{path}: the shards hold more tensors than split.tensors.count, {total}")
