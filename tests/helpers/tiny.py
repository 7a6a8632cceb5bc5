"""Small inputs for tests, made from PCG64's raw bits so that every machine makes the same bytes."""

from pathlib import Path

import numpy as np
from gguf.constants import GGUFValueType

from borealis_gguf.checkpoint.types import KV, GGMLQuantizationType, Slice
from borealis_gguf.pipeline.plan import Codec, GGUFModel, Tensor, TensorSource
from borealis_gguf.quantize.encoders import ggml

CODEC = Codec(ggml.encode, ggml.decode, ggml.validate)


def weights(seed: int, *shape: int) -> np.ndarray:
    """float32 in (-1, 1), roughly bell-shaped: the mean of four uniform numbers."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (bits.view(np.uint16).reshape(-1, 4).astype(np.float32).mean(axis=1) / 32768 - 1).reshape(shape)


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 as BF16 bits (uint16), cut off: what a checkpoint holds."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def raw_model(
    path: Path, shapes: dict[str, tuple[int, ...]], type: GGMLQuantizationType, shift: float = 0.0
) -> GGUFModel:
    """A model whose tensors lie one after another in the raw file `path`; 1-D ones are shifted by `shift`."""
    tensors, blobs, offset = [], [], 0
    for seed, (name, shape) in enumerate(shapes.items()):
        values = weights(seed, *shape)
        data = {"BF16": bf16(values), "F16": values.astype(np.float16), "F32": values}[type.name].tobytes()
        source = TensorSource(Slice(path, offset, type, shape), shift if len(shape) == 1 else 0.0)
        tensors.append(Tensor(name, source, shape))
        blobs.append(data)
        offset += len(data)
    path.write_bytes(b"".join(blobs))
    return GGUFModel((KV("general.architecture", GGUFValueType.STRING, "gemma3"),), tuple(tensors))
