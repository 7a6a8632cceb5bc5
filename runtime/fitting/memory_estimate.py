"""How much memory a model will take in llama.cpp, told from its header alone, before anything is loaded.

Bytes of weights and cache are exact. What the computation takes is llama.cpp's widest moment: up to 512 tokens at a
time, with the tensors of one layer, or the logits, laid over those of the one before.

On the CPU, weights are the part of the file that llama.cpp maps, and beside it the matrices that it lays out anew for
this CPU (see `repack`). Those are in memory twice while the model is loaded: `spare` are the mapped ones, which nobody
reads again, so that the system can have their memory back. Whether a model fits is asked without them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...checkpoint.gguf_validation import BLOCK
from ...checkpoint.types import GGMLQuantizationType, Slice
from ...errors import InvalidInput
from ..scheduling.slots import MARKS, MARKS_BYTES

BATCH = 512
"""Tokens llama.cpp computes at a time: n_batch and n_ubatch."""

CELLS = 256  # llama.cpp rounds contexts and windows up to as many
F16, F32 = 2, 4
INPUT = ("token_embd.", "token_embd_norm.", "position_embd.", "token_types.")  # never leave the CPU
PLACES = 16  # numbers that say where a token is and goes
WINDOW_PERIOD = 6  # Gemma 3: every sixth layer sees everything
VISION_EXTRA = 16 << 20  # its transposed matrices and pictures


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one device. `copies` are ours, of sliding windows; `spare` those of the weights that are not kept."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    copies: int = 0
    spare: int = 0

    @property
    def total(self) -> int:
        """What llama.cpp allocates or maps, and the copies."""
        return self.weights + self.cache + self.compute + self.copies

    @property
    def lasting(self) -> int:
        """What cannot be had back while the model is loaded."""
        return self.total - self.spare

    def __add__(self, other: "Need") -> "Need":
        return Need(*(getattr(self, name) + getattr(other, name) for name in Need.__slots__))  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What decides a model's memory. Of each block: its weights and its largest matrix in bytes, the bytes of a cache
    cell, whether it sees only the last `window` tokens, the bytes of its matrices that are laid out anew and those of
    the copies, and the bytes of adapters."""

    blocks: tuple[int, ...]
    matrices: tuple[int, ...]
    cells: tuple[int, ...]
    windowed: tuple[bool, ...]
    window: int
    input: int
    output: int
    tied: int  # bytes of an embedding that is the output matrix too, else 0
    n_vocab: int
    trained: int
    layer: int  # float32 numbers a token takes in the widest moment of a layer
    width: int
    mapped: int  # bytes of the file in memory where no layer is on a GPU
    packed: tuple[int, ...]
    packs: tuple[int, ...]
    output_packed: int
    output_pack: int
    adapters: tuple[int, ...]
    output_adapter: int

    @property
    def n_layers(self) -> int:
        """As --gpu-layers counts: the output is one more than the blocks."""
        return len(self.blocks) + 1


Repack = Callable[[GGMLQuantizationType, tuple[int, ...]], int]
"""Bytes of a matrix of this type and shape in the CPU's own layout; 0: it has none (see `repack.repacked`)."""


def sizes(header: GGUFFile, repack: Repack | None = None, adapters: Sequence[GGUFFile] = ()) -> Sizes:
    """Read off a language model's header, and those of LoRA adapters. repack: None, without extra buffers.

    Raises InvalidInput where a key is missing.
    """
    return _Keys(header).sizes(repack or (lambda type, shape: 0), adapters)


def estimate(
    sizes: Sizes, context: int, parallel: int = 1, gpu_layers: int = 0, outputs: int = 0, batch: int = BATCH
) -> tuple[Need, Need]:
    """What the CPU and the GPU need for `parallel` sequences of `context` tokens each, in an F16 cache per sequence.

    gpu_layers: as llama.cpp counts, from the output downwards. outputs: tokens of a batch whose logits are wanted
    (n_outputs_max); 0 is all. batch: tokens computed at a time. Weights count in full, though on the CPU they are
    mapped from the file, and the system may drop those not in use.
    """
    start = max(0, sizes.n_layers - gpu_layers)  # the first block on the GPU
    cells = _rounded(context)
    tokens = -(-min(batch, parallel * cells) // parallel) * parallel
    windowed_cells = _rounded(min(cells, sizes.window + min(batch, parallel * cells)))
    masks = F16 * tokens * (cells + (windowed_cells if sizes.window else 0))
    layer = F32 * tokens * (sizes.layer + PLACES) + masks
    logits = F32 * min(tokens, outputs or tokens) * (sizes.n_vocab + 4 * sizes.width)
    caches = [
        parallel * (windowed_cells if windowed else cells) * nbytes
        for windowed, nbytes in zip(sizes.windowed, sizes.cells, strict=True)
    ]
    copy = min(cells, sizes.window) * sum(
        n for windowed, n in zip(sizes.windowed, sizes.cells, strict=True) if windowed
    )
    copies = min(MARKS_BYTES, MARKS * parallel * copy)
    host = F32 * parallel * sizes.n_vocab
    packs, packed, beside = (sum(each[:start]) for each in (sizes.packs, sizes.packed, sizes.adapters))
    if gpu_layers <= 0:
        weights = sizes.mapped + packs + sizes.output_pack + beside + sizes.output_adapter
        read = sizes.input + sum(sizes.blocks) + sizes.output - packed - sizes.output_packed
        return Need(weights, sum(caches), max(layer, logits) + host, copies, max(0, sizes.mapped - read)), Need()
    embedded = masks + 2 * F32 * tokens * sizes.width
    weights = sizes.input + sum(sizes.blocks[:start]) + packs + beside
    cpu = Need(weights, sum(caches[:start]), (layer if start else embedded) + host, copies, packed)
    on_gpu = max(layer if start < len(sizes.blocks) else 0, logits)
    borrowed = max(sizes.matrices[:start], default=0)  # long prompts: the CPU's matrices visit the GPU one by one
    weights = sum(sizes.blocks[start:]) + sizes.output + sizes.tied + sum(sizes.adapters[start:]) + sizes.output_adapter
    return cpu, Need(weights, sum(caches[start:]), on_gpu + borrowed)


def vision_need(mmproj: GGUFFile) -> Need:
    """What the side that sees needs, on the device it is on: all its weights, and the tensors of one layer."""
    side, patch, width, ff = (
        _number(mmproj, f"clip.vision.{key}")
        for key in ("image_size", "patch_size", "embedding_length", "feed_forward_length")
    )
    patches = (side // max(1, patch)) ** 2
    weights = sum(tensor.nbytes for tensor in mmproj.tensors.values())
    return Need(weights, 0, F32 * patches * (ff + 3 * width) + VISION_EXTRA)


def _multiplied(name: str) -> bool:
    """Whether a tensor is, if it is a matrix, one that the model multiplies with."""
    return name.endswith(".weight") and not name.startswith(INPUT)


def _mapped(tensors: Iterable[Slice]) -> int:
    """Bytes of the files from the first to the last of `tensors`: what lies between is mapped with them."""
    ranges: dict[Path, tuple[int, int]] = {}
    for tensor in tensors:
        first, last = ranges.get(tensor.path, (tensor.offset, 0))
        ranges[tensor.path] = min(first, tensor.offset), max(last, tensor.offset + tensor.nbytes)
    return sum(last - first for first, last in ranges.values())


def _rounded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS


def _number(header: GGUFFile, key: str, default: int | None = None) -> int:
    value = header.value(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        what = "is missing" if value is None else f"is {value!r}, not a number of 0 or more"
        raise InvalidInput(f"{header.path}: {key} {what}; make the GGUF again from its checkpoint")
    return value


class _Keys:
    """A header whose keys are read by what follows the architecture."""

    def __init__(self, header: GGUFFile) -> None:
        self.header = header
        self.architecture = header.value("general.architecture", "")
        self.n_blocks = self.number("block_count")
        if self.n_blocks > len(header.tensors):
            raise InvalidInput(f"{header.path}: {self.n_blocks} blocks of {len(header.tensors)} tensors cannot be")

    def number(self, key: str, default: int | None = None) -> int:
        return _number(self.header, f"{self.architecture}.{key}", default)

    def each(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """A value per block, which the header may give as one for all."""
        value: Any = self.header.value(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return (self.number(key, default),) * self.n_blocks
        if len(value) != self.n_blocks or not all(isinstance(n, int) and n >= 0 for n in value):
            raise InvalidInput(f"{self.header.path}: {self.architecture}.{key} is not {self.n_blocks} numbers")
        return value

    def sizes(self, repack: Repack, adapters: Sequence[GGUFFile]) -> Sizes:
        tensors = self.header.tensors
        embedding = tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InvalidInput(
                f"{self.header.path}: token_embd.weight is no matrix here; this GGUF holds no language model"
            )
        copies = {name: repack(tensor.type, tensor.shape) for name, tensor in tensors.items() if _multiplied(name)}
        packed = {name: tensors[name].nbytes for name, copy in copies.items() if copy}
        *blocks, before, after = self.shared({name: tensor.nbytes for name, tensor in tensors.items()})
        *packs, _, output_pack = self.shared(copies)
        *was_packed, _, output_packed = self.shared(packed)
        added: Counter[str] = Counter()
        for adapter in adapters:
            added.update({name: tensor.nbytes for name, tensor in adapter.tensors.items()})
        *beside, input_adapter, output_adapter = self.shared(added)
        tied = "output.weight" not in tensors
        window, windowed = self.window()
        cells, layer = self.attention()
        return Sizes(
            tuple(blocks),
            self.largest(),
            cells,
            windowed,
            window,
            before,
            after,
            embedding.nbytes if tied else 0,
            embedding.shape[0],
            self.number("context_length"),
            layer,
            self.number("embedding_length"),
            _mapped([tensor for name, tensor in tensors.items() if name not in packed]),
            tuple(was_packed),
            tuple(packs),
            output_packed,
            output_pack + (repack(embedding.type, embedding.shape) if tied else 0),
            tuple(beside),
            input_adapter + output_adapter,
        )

    def largest(self) -> tuple[int, ...]:
        """Bytes of the largest matrix of each block."""
        found = [0] * self.n_blocks
        for name, tensor in self.header.tensors.items():
            place = self.place(name)
            if place < self.n_blocks:
                found[place] = max(found[place], tensor.nbytes)
        return tuple(found)

    def shared(self, nbytes: Mapping[str, int]) -> list[int]:
        """Bytes by tensor as bytes by block, and then those before and those after all blocks."""
        found = [0] * (self.n_blocks + 2)
        for name, count in nbytes.items():
            found[self.place(name)] += count
        return found

    def place(self, name: str) -> int:
        """The number of a tensor's block; one more for what is before all blocks, two for what is after."""
        match = BLOCK.match(name)
        if match and int(match[1]) < self.n_blocks:
            return int(match[1])
        return self.n_blocks + (0 if name.startswith(INPUT) else 1)

    def attention(self) -> tuple[tuple[int, ...], int]:
        """Bytes of a cache cell by block, and `layer` of Sizes: the wider of feed-forward and attention."""
        width, heads = self.number("embedding_length"), self.each("attention.head_count")
        n_head = max(heads, default=1) or 1
        kv_heads = heads
        if self.header.find(f"{self.architecture}.attention.head_count_kv"):
            kv_heads = self.each("attention.head_count_kv")
        key = self.number("attention.key_length", width // n_head)
        value = self.number("attention.value_length", width // n_head)
        gated = any(name.endswith("ffn_gate.weight") for name in self.header.tensors)
        forward = (3 if gated else 1) * max(self.each("feed_forward_length"), default=0)
        queries, keys = n_head * key, max(kv_heads, default=0) * (key + value)
        layer = 3 * width + queries + max(forward, queries + keys)
        return tuple(F16 * n * (key + value) for n in kv_heads), layer

    def window(self) -> tuple[int, tuple[bool, ...]]:
        """The window of those blocks that have one. Of these architectures llama.cpp gives Gemma 3 alone one."""
        everything = (False,) * self.n_blocks
        if self.architecture != "gemma3":
            return 0, everything
        window = self.number("attention.sliding_window", 0)
        if not window:
            return 0, everything
        pattern: Any = self.header.value("gemma3.attention.sliding_window_pattern")
        if isinstance(pattern, tuple):
            return window, (tuple(map(bool, pattern)) + everything)[: self.n_blocks]
        period = self.number("attention.sliding_window_pattern", WINDOW_PERIOD)
        return window, tuple(not period or bid % period < period - 1 for bid in range(self.n_blocks))
