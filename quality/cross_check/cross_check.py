"""The second opinion: settings and weights against config.json and the safetensors as `definitions` understands them.

The other sections take what a checkpoint means from `convert`, so a fault there would be in both sides of what they
compare. Here is no plan: a few rows are read from the files, and settings come from config.json.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...checkpoint.folder import MAX_TOKENIZER_JSON, Checkpoint, open_checkpoint, read_json_object
from ...checkpoint.gguf import GGUFFile
from ...checkpoint.types import KV, GGMLQuantizationType, Slice, row_nbytes
from ...errors import InvalidInput
from ...pipeline.plan import Codec, GGUFModel
from ...quantize.encoders import ggml
from ..report import Finding, Section, failures_first, spelled
from ..weights import error_bounds
from ..weights.comparison import row_sums, sampled_rows
from .transformers_definition import FLOATS, Definition, Values, Weight, definition_of

TITLE = "second opinion"
T = GGMLQuantizationType
WRAPPERS = re.compile(
    r"(?:(?:model|language_model|transformer|vision_tower|vision_model|multi_modal_projector|multimodal_projector)\.)*"
)
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
ROLES = {"bos_token": ("bos",), "eos_token": ("eos", "eot", "eom")}
"""Where a tokenizer ends texts with one token and its configuration names another, the latter ends a turn."""

CONTROL = 3
RELATED = 0.5
"""Weights of another row have a correlation near 0, and those of the right one, however coarse their type, at least
this part of what our encoder reaches."""


def second_opinion(header: GGUFFile, source: GGUFModel, codec: Codec, *, quick: bool) -> Section:
    """A section without findings where `source` is no checkpoint, and on an adapter.

    `quick` looks at the first and the last block only. Of weights that are far away, none is read; what adapters have
    changed is not looked at.
    """
    if source.origin is None or header.value("general.type") == "adapter":
        return Section(TITLE, ())
    config = read_json_object(source.origin / "config.json")
    name, definition = definition_of(config, vision=header.value("general.type") == "mmproj")
    if definition is None:
        return Section(TITLE, (Finding("note", f"none: {name} is defined only once"),))
    values = definition.values(config)
    findings = _keys(header, definition, values, source.origin)
    if not any(tensor.source.slice.remote for tensor in source.tensors):
        changed = {t.name for t in source.tensors if t.source.updates or t.source.precision is not None}
        findings += _weights(_Sides(header, source.origin, codec, changed), definition, values, quick)
    return Section(TITLE, failures_first(findings, 8))


def _keys(header: GGUFFile, definition: Definition, values: Values, origin: Path) -> list[Finding]:
    """Every setting that the definition knows, where one that is not there must not be there, and both special tokens
    that every model has."""
    wanted = [("general.architecture", definition.architecture, "")]
    wanted += [(f"{definition.prefix}.{key}", values.get(name), name) for key, name in definition.keys.items()]
    failed = [finding for key, value, name in wanted for finding in _key(header.find(key), key, value, name)]
    tokens = len(header.value("tokenizer.ggml.tokens", ()))
    if "vocab_size" in values and tokens != values["vocab_size"]:
        failed.append(Finding("failed", "tokens", "", f"{values['vocab_size']} (vocab_size)", str(tokens)))
    failed += _special(header, origin)
    return failed or [Finding("ok", f"{len(wanted)} keys are config.json's")]


def _key(found: KV | None, key: str, value: Any, name: str) -> list[Finding]:
    """What is wrong with a key that must have `value`, which transformers calls `name`."""
    mine = found.value if found else None
    if not _same(value, mine):
        return [Finding("failed", "key", key, f"{_shown(value)}{name and f' ({name})'}", _shown(mine))]
    kind = "STRING" if isinstance(value, str) else "FLOAT32" if name in FLOATS else "UINT32"
    if found and found.type.name != kind:
        return [Finding("failed", "key", key, f"the type {kind}", f"the type {found.type.name}")]
    return []


def _special(header: GGUFFile, origin: Path) -> list[Finding]:
    """What tokenizer_config.json calls by name, if tokenizer.json has it as a control token, has its role."""
    checkpoint = Checkpoint(origin, None, {}, {})
    settings, whole = checkpoint.file("tokenizer_config.json"), checkpoint.file("tokenizer.json")
    said = read_json_object(settings, limit=MAX_TOKENIZER_JSON) if settings and whole else {}
    tokens, types = (header.value(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "token_type"))
    failed = []
    for name, roles in ROLES.items():
        text = said.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        id = tokens.index(text) if text in tokens else -1
        found = [header.value(f"tokenizer.ggml.{role}_token_id") for role in roles]
        if 0 <= id < len(types) and types[id] == CONTROL and id not in found:
            key = f"tokenizer.ggml.{roles[0]}_token_id"
            failed.append(Finding("failed", "key", key, f"{id} ({name}, {spelled(str(text))})", _shown(found[0])))
    return failed


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return found == wanted or np.float32(found) == np.float32(wanted)
    return wanted == found


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)[:60]


@dataclass(frozen=True, slots=True)
class _Match:
    """A tensor of the GGUF, and what it must hold: the tensor `name` of the checkpoint, as `weight` says."""

    gguf: str
    name: str
    source: Slice
    weight: Weight


class _Sides:
    """The two files' tensors; `changed` are those of the GGUF that adapters have a part in."""

    def __init__(self, header: GGUFFile, origin: Path, codec: Codec, changed: set[str]) -> None:
        self.gguf, self.codec, self.changed = header.tensors, codec, changed
        tensors = open_checkpoint(origin, quiet=True).tensors
        self.checkpoint = {WRAPPERS.sub("", name, count=1): (name, slice) for name, slice in tensors.items()}

    def matches(self, definition: Definition, blocks: Sequence[int]) -> Iterator[_Match]:
        for weight in definition.weights:
            for bid in blocks if "{}" in weight.gguf else (0,):
                for kind in (".weight", ".bias"):
                    gguf, own = weight.gguf.format(bid) + kind, weight.checkpoint.format(bid)
                    # some matrices are no module's, and their names are whole
                    found = self.checkpoint.get(own + kind) or self.checkpoint.get(own if kind == ".weight" else "")
                    home = self._home(gguf)
                    if found and home not in self.changed:
                        yield _Match(home, *found, weight)

    def _home(self, gguf: str) -> str:
        """A head that is left out is the embedding, which must then hold it too."""
        return EMBEDDING if gguf == HEAD and HEAD not in self.gguf else gguf


def _weights(sides: _Sides, definition: Definition, values: Values, quick: bool) -> list[Finding]:
    blocks = values[definition.blocks]
    matches = list(sides.matches(definition, sorted({0, blocks - 1}) if quick else range(blocks)))
    failed, rows = [], 0
    with ExitStack() as stack:
        files = _Files(stack)
        for match in matches:
            compared = _compared(files, sides, match, values)
            rows += compared if isinstance(compared, int) else 0
            failed += [compared] if isinstance(compared, Finding) else []
    what = f"{len(matches)} tensors, {rows} rows are what the checkpoint's files hold"
    return failed or ([Finding("ok", what)] if matches else [])


def _compared(files: "_Files", sides: _Sides, match: _Match, values: Values) -> Finding | int:
    """How many rows were compared, or what is wrong with them."""
    found, source = sides.gguf.get(match.gguf), match.source
    told = match.name + (f", {match.weight.order.text}" if match.weight.order else "")
    told += f", and {match.weight.add:g} added" if match.weight.add else ""
    if found is None:
        return Finding("failed", "weights", match.gguf, told, "no such tensor")
    n, rows = found.shape[-1], prod(found.shape[:-1])
    if n != source.shape[-1] or rows > prod(source.shape[:-1]):
        return Finding("failed", "weights", match.gguf, f"{told}: {list(source.shape)}", str(list(found.shape)))
    numbers = sampled_rows(rows)
    decoded = sides.codec.decode(files.rows(found, numbers), found.type, n)
    good = _alike(decoded, _wanted(files, match, numbers, rows, values), found.type, sides.codec)
    if good.all():
        return len(numbers)
    seen = f"others, in {np.sum(~good)} of {len(numbers)} rows that were read"
    return Finding("failed", "weights", match.gguf, told, seen)


def _wanted(files: "_Files", match: _Match, numbers: Sequence[int], rows: int, values: Values) -> np.ndarray:
    """float32 [rows, n]: the checkpoint's, as the GGUF must have them."""
    source, order, whole = match.source, match.weight.order, len(match.source.shape) > 1
    picked = order.rows(rows, values)[numbers].tolist() if order and whole else numbers
    read = _numbers(files.rows(source, picked), source.type)
    if order and not whole:  # a vector's elements stand for rows
        read = read[:, order.rows(source.shape[0], values)]
    if match.weight.add:
        read = read + read.dtype.type(match.weight.add)
    return read.astype(np.float32)


def _numbers(data: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
    """Stored bytes as numbers: float16 stays so, for what is added is added in that precision."""
    if type == T.BF16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if type == T.F16 else np.float32)


class _Files:
    """Files that are open for single rows."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.open: dict[Path, BinaryIO] = {}

    def rows(self, slice: Slice, numbers: Sequence[int]) -> np.ndarray:
        """The stored bytes of rows of `slice`: uint8 [rows, row_nbytes]. Raises InvalidInput at the file's end."""
        if slice.path not in self.open:
            self.open[slice.path] = self.stack.enter_context(slice.path.open("rb", buffering=0))
        file, nbytes = self.open[slice.path], row_nbytes(slice.type, slice.shape[-1])
        data = bytearray()
        for row in numbers:
            file.seek(slice.offset + row * nbytes)
            data += file.read(nbytes)
        if len(data) != nbytes * len(numbers):
            raise InvalidInput(f"{slice.path}: ends inside a tensor; the file is truncated: fetch it again")
        return np.frombuffer(data, np.uint8).reshape(len(numbers), nbytes)


def _alike(found: np.ndarray, wanted: np.ndarray, type: GGMLQuantizationType, codec: Codec) -> np.ndarray:
    """For each row, whether it is `wanted` as well as the type can hold it. Rows with a NaN or infinity are not judged.

    What is further off than is typical, or in another direction, must be about as good as our own encoding.
    """
    sums, size = row_sums(wanted, found), np.einsum("ij,ij->i", found.astype(np.float64), found)
    least = error_bounds.floor(type) ** 2 * wanted.shape[1]
    with np.errstate(invalid="ignore"):
        good = (sums[2] <= error_bounds.limit(type) ** 2 * sums[0] + least) & (
            sums[1] >= RELATED * np.sqrt(sums[0] * size)
        )
    good |= ~np.isfinite(wanted).all(axis=1)
    doubtful = np.flatnonzero(~good)
    if doubtful.size:
        own = _encoded(wanted[doubtful], type, codec)
        ours = row_sums(wanted[doubtful], own)
        ours_size = np.einsum("ij,ij->i", own.astype(np.float64), own)
        near = sums[2, doubtful] <= error_bounds.ALIKE_WEIGHTED**2 * ours[2] + least
        reached = ours[1] / np.sqrt(np.maximum(ours[0] * ours_size, 1e-300))
        good[doubtful] = near & (sums[1, doubtful] >= RELATED * reached * np.sqrt(sums[0] * size)[doubtful])
    return good


def _encoded(rows: np.ndarray, type: GGMLQuantizationType, codec: Codec) -> np.ndarray:
    n = rows.shape[1]
    out = np.empty((len(rows), row_nbytes(type, n)), np.uint8)
    importance = np.ones(n, np.float32) if ggml.requires_importance(type) else None
    codec.encode(np.ascontiguousarray(rows), type, importance, out)
    return codec.decode(out, type, n)
