"""Compares rows of a GGUF's tensors with rows read from the safetensors, by the names and orders of a definition."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...checkpoint.gguf import GGUFFile
from ...checkpoint.types import GGMLQuantizationType, Slice, row_nbytes
from ...errors import InvalidInput
from ...pipeline.plan import Codec
from ..report import Finding
from ..weights import error_bounds
from ..weights.row_comparison import reencode, row_dot, row_sums
from ..weights.sampled_rows import sample_rows
from .definition import Definition, Settings, Weight

T = GGMLQuantizationType
WRAPPERS = re.compile(
    r"(?:(?:model|language_model|transformer|vision_tower|vision_model|multi_modal_projector|multimodal_projector)\.)*"
)
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
MIN_CORRELATION = 0.5
"""Of decoded weights with their source, as a part of what our own encoding reaches, however coarse the type. Weights of
another row have a correlation near 0."""


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """A tensor of the GGUF that must hold the tensor `name` of the checkpoint, as `weight` describes it."""

    gguf: str
    name: str
    source: Slice
    weight: Weight

    @property
    def description(self) -> str:
        order = f", {self.weight.order.text}" if self.weight.order else ""
        return f"{self.name}{order}" + (f", and {self.weight.add:g} added" if self.weight.add else "")


class CheckpointWeights:
    """The tensors of a GGUF and of its checkpoint. The GGUF's tensors in `merged` hold merged adapters, too."""

    def __init__(self, header: GGUFFile, checkpoint: Mapping[str, Slice], merged: Set[str]) -> None:
        self.gguf, self.merged = header.tensors, merged
        self.checkpoint = {WRAPPERS.sub("", name, count=1): (name, slice) for name, slice in checkpoint.items()}

    def matches(self, definition: Definition, blocks: Sequence[int]) -> Iterator[TensorMatch]:
        for weight in definition.weights:
            for bid in blocks if "{}" in weight.gguf else (0,):
                for kind in (".weight", ".bias"):
                    gguf = self._stored_name(weight.gguf.format(bid) + kind)
                    source = self._find(weight.checkpoint.format(bid), kind)
                    if source and gguf not in self.merged:
                        yield TensorMatch(gguf, *source, weight)

    def _find(self, module: str, kind: str) -> tuple[str, Slice] | None:
        """The checkpoint's tensor of a module. Some matrices belong to no module: their name has no ".weight"."""
        return self.checkpoint.get(module + kind) or self.checkpoint.get(module if kind == ".weight" else "")

    def _stored_name(self, gguf: str) -> str:
        """A GGUF without an output matrix uses the embedding, which must then equal the checkpoint's head."""
        return EMBEDDING if gguf == HEAD and HEAD not in self.gguf else gguf


def check_weights(
    weights: CheckpointWeights, definition: Definition, settings: Settings, codec: Codec, *, quick: bool
) -> list[Finding]:
    """Sampled rows of every tensor that the definition knows; `quick`: of the first and the last block."""
    blocks = settings[definition.block_count]
    matches = list(weights.matches(definition, sorted({0, blocks - 1}) if quick else range(blocks)))
    failed, rows = [], 0
    with ExitStack() as stack:
        files = _RowFiles(stack)
        for match in matches:
            result = _check_tensor(files, weights.gguf.get(match.gguf), match, settings, codec)
            rows += result if isinstance(result, int) else 0
            failed += [result] if isinstance(result, Finding) else []
    what = f"{len(matches)} tensors, {rows} rows are what the checkpoint's files hold"
    return failed or ([Finding("ok", what)] if matches else [])


def _check_tensor(
    files: "_RowFiles", gguf: Slice | None, match: TensorMatch, settings: Settings, codec: Codec
) -> Finding | int:
    """How many rows were compared, or what is wrong with them."""
    source, expected = match.source, match.description
    if gguf is None:
        return Finding("failed", "weights", match.gguf, expected, "no such tensor")
    n, rows = gguf.shape[-1], prod(gguf.shape[:-1])
    if n != source.shape[-1] or rows > prod(source.shape[:-1]):
        return Finding("failed", "weights", match.gguf, f"{expected}: {list(source.shape)}", str(list(gguf.shape)))
    numbers = sample_rows(rows)
    decoded = codec.decode(files.read_rows(gguf, numbers), gguf.type, n)
    good = _rows_match(decoded, _source_rows(files, match, numbers, rows, settings), gguf.type, codec)
    if good.all():
        return len(numbers)
    wrong = f"others, in {np.sum(~good)} of {len(numbers)} rows that were read"
    return Finding("failed", "weights", match.gguf, expected, wrong)


def _source_rows(
    files: "_RowFiles", match: TensorMatch, numbers: Sequence[int], rows: int, settings: Settings
) -> np.ndarray:
    """The checkpoint's rows in the order and with the shift of the GGUF: float32 [rows, n]."""
    source, order, matrix = match.source, match.weight.order, len(match.source.shape) > 1
    picked = order.rows(rows, settings)[numbers].tolist() if order and matrix else numbers
    values = _as_floats(files.read_rows(source, picked), source.type)
    if order and not matrix:  # the elements of a vector belong to rows of a matrix
        values = values[:, order.rows(source.shape[0], settings)]
    if match.weight.add:
        values = values + values.dtype.type(match.weight.add)
    return values.astype(np.float32)


def _as_floats(data: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
    """Stored bytes as numbers. Float16 stays float16, in which precision a shift is added."""
    if type == T.BF16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if type == T.F16 else np.float32)


class _RowFiles:
    """Open files from which single rows are read."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.open: dict[Path, BinaryIO] = {}

    def read_rows(self, slice: Slice, numbers: Sequence[int]) -> np.ndarray:
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


def _rows_match(decoded: np.ndarray, source: np.ndarray, type: GGMLQuantizationType, codec: Codec) -> np.ndarray:
    """For each row, whether it holds `source` as well as the type can. Rows with a NaN or infinity always match.

    A row with a larger error than is typical, or a low correlation, must be about as good as our own encoding.
    """
    sums, square = row_sums(source, decoded), row_dot(decoded.astype(np.float64), decoded)
    least = error_bounds.floor(type) ** 2 * source.shape[1]
    with np.errstate(invalid="ignore"):
        good = (sums[2] <= error_bounds.limit(type) ** 2 * sums[0] + least) & (
            sums[1] >= MIN_CORRELATION * np.sqrt(sums[0] * square)
        )
    good |= ~np.isfinite(source).all(axis=1)
    rows = np.flatnonzero(~good)
    reencoded = reencode(codec, source[rows], type) if rows.size else None
    if reencoded is not None:
        best, best_square = row_sums(source[rows], reencoded), row_dot(reencoded.astype(np.float64), reencoded)
        near = sums[2, rows] <= error_bounds.ALIKE_WEIGHTED**2 * best[2] + least
        reached = best[1] / np.sqrt(np.maximum(best[0] * best_square, 1e-300))
        good[rows] = near & (sums[1, rows] >= MIN_CORRELATION * reached * np.sqrt(sums[0] * square)[rows])
    return good
