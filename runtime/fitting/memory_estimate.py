"""Estimates from a model's header alone how much memory llama.cpp will need for it.

Bytes of weights and KV cache are exact. The compute buffer is estimated from its peak: a batch of up to 512 tokens with
the tensors of one layer, or the logits, which reuse the memory of the layer before.

On the CPU, weights are the part of the file that llama.cpp maps, and beside it the matrices that it repacks for this
CPU (see `repack`). Those are in memory twice while the model is loaded: `spare` are the mapped ones, which are not read
again, so that the system can reclaim their memory. Whether a model fits is decided without them.
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
from ..llama.limits import BATCH, MAX_CHECKPOINT_BYTES, MAX_CHECKPOINTS, rounded_cells

F16, F32 = 2, 4
INPUT_TENSORS = ("token_embd.", "token_embd_norm.", "position_embd.", "token_types.")  # never leave the CPU
TOKEN_INPUTS = 16  # numbers per token for its positions and cache cells
WINDOW_PERIOD = 6  # Gemma 3: every sixth layer attends to the whole context
VISION_EXTRA = 16 << 20  # its transposed matrices and images


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes on one device. `copies` are the slots' checkpoints of sliding windows; `spare` is the part of the weights
    that the system can reclaim."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    copies: int = 0
    spare: int = 0

    @property
    def total(self) -> int:
        """What llama.cpp allocates or maps, and the checkpoints."""
        return self.weights + self.cache + self.compute + self.copies

    @property
    def lasting(self) -> int:
        """What cannot be reclaimed while the model is loaded."""
        return self.total - self.spare

    def __add__(self, other: "MemoryNeed") -> "MemoryNeed":
        return MemoryNeed(*(getattr(self, name) + getattr(other, name) for name in MemoryNeed.__slots__))  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What decides a model's memory. For each block: the bytes of its weights, of its largest matrix and of a KV cache
    cell, whether it attends only to the last `window` tokens, the bytes of the matrices that are repacked (`packed`)
    and of their copies (`packs`), and the bytes of adapters."""

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
    layer: int  # float32 numbers per token at the peak of a layer
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
        """As --gpu-layers counts them: the blocks and the output."""
        return len(self.blocks) + 1


Repack = Callable[[GGMLQuantizationType, tuple[int, ...]], int]
"""Bytes of the repacked copy of a matrix of this type and shape; 0: none (see `repack.repacked_nbytes`)."""


def sizes(header: GGUFFile, repack: Repack | None = None, adapters: Sequence[GGUFFile] = ()) -> ModelSizes:
    """The sizes of a language model, from its header and those of LoRA adapters. repack: None, without extra buffers.

    Raises InvalidInput where a key is missing.
    """
    return _HeaderReader(header).sizes(repack or (lambda type, shape: 0), adapters)


def estimate(
    sizes: ModelSizes, context: int, parallel: int = 1, gpu_layers: int = 0, outputs: int = 0, batch: int = BATCH
) -> tuple[MemoryNeed, MemoryNeed]:
    """What the CPU and the GPU need for `parallel` sequences of `context` tokens each, with an F16 cache per sequence.

    gpu_layers: as llama.cpp counts, from the output downwards. outputs: tokens of a batch whose logits are wanted
    (n_outputs_max); 0 is all. batch: tokens computed at a time. Weights count in full, though on the CPU they are
    mapped from the file, and the system may drop those not in use.
    """
    start = max(0, sizes.n_layers - gpu_layers)  # the first block on the GPU
    cells = rounded_cells(context)
    tokens = -(-min(batch, parallel * cells) // parallel) * parallel
    windowed_cells = rounded_cells(min(cells, sizes.window + min(batch, parallel * cells)))
    masks = F16 * tokens * (cells + (windowed_cells if sizes.window else 0))
    layer = F32 * tokens * (sizes.layer + TOKEN_INPUTS) + masks
    logits = F32 * min(tokens, outputs or tokens) * (sizes.n_vocab + 4 * sizes.width)
    caches = [
        parallel * (windowed_cells if windowed else cells) * nbytes
        for windowed, nbytes in zip(sizes.windowed, sizes.cells, strict=True)
    ]
    copy = min(cells, sizes.window) * sum(
        n for windowed, n in zip(sizes.windowed, sizes.cells, strict=True) if windowed
    )
    copies = min(MAX_CHECKPOINT_BYTES, MAX_CHECKPOINTS * parallel * copy)
    host = F32 * parallel * sizes.n_vocab
    packs, packed, beside = (sum(each[:start]) for each in (sizes.packs, sizes.packed, sizes.adapters))
    if gpu_layers <= 0:
        weights = sizes.mapped + packs + sizes.output_pack + beside + sizes.output_adapter
        read = sizes.input + sum(sizes.blocks) + sizes.output - packed - sizes.output_packed
        return MemoryNeed(
            weights, sum(caches), max(layer, logits) + host, copies, max(0, sizes.mapped - read)
        ), MemoryNeed()
    embedded = masks + 2 * F32 * tokens * sizes.width
    weights = sizes.input + sum(sizes.blocks[:start]) + packs + beside
    cpu = MemoryNeed(weights, sum(caches[:start]), (layer if start else embedded) + host, copies, packed)
    on_gpu = max(layer if start < len(sizes.blocks) else 0, logits)
    copied = max(sizes.matrices[:start], default=0)  # long prompts: the CPU's matrices are copied to the GPU one by one
    weights = sum(sizes.blocks[start:]) + sizes.output + sizes.tied + sum(sizes.adapters[start:]) + sizes.output_adapter
    return cpu, MemoryNeed(weights, sum(caches[start:]), on_gpu + copied)


def vision_need(mmproj: GGUFFile) -> MemoryNeed:
    """What the vision tower needs on its device: all its weights, and the tensors of one layer."""
    side, patch, width, ff = (
        _number(mmproj, f"clip.vision.{key}")
        for key in ("image_size", "patch_size", "embedding_length", "feed_forward_length")
    )
    patches = (side // max(1, patch)) ** 2
    weights = sum(tensor.nbytes for tensor in mmproj.tensors.values())
    return MemoryNeed(weights, 0, F32 * patches * (ff + 3 * width) + VISION_EXTRA)


def _is_multiplied(name: str) -> bool:
    """Whether the model multiplies with this tensor, if it is a matrix."""
    return name.endswith(".weight") and not name.startswith(INPUT_TENSORS)


def _mapped(tensors: Iterable[Slice]) -> int:
    """Bytes of the files from the first to the last of `tensors`: everything between is mapped too."""
    ranges: dict[Path, tuple[int, int]] = {}
    for tensor in tensors:
        first, last = ranges.get(tensor.path, (tensor.offset, 0))
        ranges[tensor.path] = min(first, tensor.offset), max(last, tensor.offset + tensor.nbytes)
    return sum(last - first for first, last in ranges.values())


def _number(header: GGUFFile, key: str, default: int | None = None) -> int:
    value = header.value(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        what = "is missing" if value is None else f"is {value!r}, not a number of 0 or more"
        raise InvalidInput(f"{header.path}: {key} {what}; make the GGUF again from its checkpoint")
    return value


class _HeaderReader:
    """Reads a header's keys, which begin with the architecture."""

    def __init__(self, header: GGUFFile) -> None:
        self.header = header
        self.architecture = header.value("general.architecture", "")
        self.n_blocks = self.number("block_count")
        if self.n_blocks > len(header.tensors):
            raise InvalidInput(f"{header.path}: {self.n_blocks} blocks of {len(header.tensors)} tensors cannot be")

    def number(self, key: str, default: int | None = None) -> int:
        return _number(self.header, f"{self.architecture}.{key}", default)

    def per_block(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """A value for each block; the header may hold one value for all."""
        value: Any = self.header.value(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return (self.number(key, default),) * self.n_blocks
        if len(value) != self.n_blocks or not all(isinstance(n, int) and n >= 0 for n in value):
            raise InvalidInput(f"{self.header.path}: {self.architecture}.{key} is not {self.n_blocks} numbers")
        return value

    def sizes(self, repack: Repack, adapters: Sequence[GGUFFile]) -> ModelSizes:
        tensors = self.header.tensors
        embedding = tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InvalidInput(
                f"{self.header.path}: token_embd.weight is no matrix here; this GGUF holds no language model"
            )
        copies = {name: repack(tensor.type, tensor.shape) for name, tensor in tensors.items() if _is_multiplied(name)}
        packed = {name: tensors[name].nbytes for name, copy in copies.items() if copy}
        *blocks, before, after = self.nbytes_by_block({name: tensor.nbytes for name, tensor in tensors.items()})
        *packs, _, output_pack = self.nbytes_by_block(copies)
        *was_packed, _, output_packed = self.nbytes_by_block(packed)
        added: Counter[str] = Counter()
        for adapter in adapters:
            added.update({name: tensor.nbytes for name, tensor in adapter.tensors.items()})
        *beside, input_adapter, output_adapter = self.nbytes_by_block(added)
        tied = "output.weight" not in tensors
        window, windowed = self.window()
        cells, layer = self.attention()
        return ModelSizes(
            tuple(blocks),
            self.largest_matrices(),
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

    def largest_matrices(self) -> tuple[int, ...]:
        """Bytes of the largest matrix of each block."""
        found = [0] * self.n_blocks
        for name, tensor in self.header.tensors.items():
            block = self.block_of(name)
            if block < self.n_blocks:
                found[block] = max(found[block], tensor.nbytes)
        return tuple(found)

    def nbytes_by_block(self, nbytes: Mapping[str, int]) -> list[int]:
        """Bytes by tensor, summed by block; the last two items are those before and those after all blocks."""
        found = [0] * (self.n_blocks + 2)
        for name, count in nbytes.items():
            found[self.block_of(name)] += count
        return found

    def block_of(self, name: str) -> int:
        """The number of a tensor's block; `n_blocks` for tensors before all blocks, one more for those after."""
        match = BLOCK.match(name)
        if match and int(match[1]) < self.n_blocks:
            return int(match[1])
        return self.n_blocks + (0 if name.startswith(INPUT_TENSORS) else 1)

    def attention(self) -> tuple[tuple[int, ...], int]:
        """Bytes of a cache cell by block, and `layer` of ModelSizes: the wider of feed-forward and attention."""
        width, heads = self.number("embedding_length"), self.per_block("attention.head_count")
        n_head = max(heads, default=1) or 1
        kv_heads = heads
        if self.header.find(f"{self.architecture}.attention.head_count_kv"):
            kv_heads = self.per_block("attention.head_count_kv")
        key = self.number("attention.key_length", width // n_head)
        value = self.number("attention.value_length", width // n_head)
        gated = any(name.endswith("ffn_gate.weight") for name in self.header.tensors)
        forward = (3 if gated else 1) * max(self.per_block("feed_forward_length"), default=0)
        queries, keys = n_head * key, max(kv_heads, default=0) * (key + value)
        layer = 3 * width + queries + max(forward, queries + keys)
        return tuple(F16 * n * (key + value) for n in kv_heads), layer

    def window(self) -> tuple[int, tuple[bool, ...]]:
        """The sliding window, and which blocks have one. Of these architectures only Gemma 3 has one in llama.cpp."""
        no_windows = (False,) * self.n_blocks
        if self.architecture != "gemma3":
            return 0, no_windows
        window = self.number("attention.sliding_window", 0)
        if not window:
            return 0, no_windows
        pattern: Any = self.header.value("gemma3.attention.sliding_window_pattern")
        if isinstance(pattern, tuple):
            return window, (tuple(map(bool, pattern)) + no_windows)[: self.n_blocks]
        period = self.number("attention.sliding_window_pattern", WINDOW_PERIOD)
        return window, tuple(not period or bid % period < period - 1 for bid in range(self.n_blocks))
