"""Planting faults in a good GGUF: what a silent bug in a converter would leave behind."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.types import KV, Slice
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import GGUFModel, Tensor, TensorSource
from borealis_gguf.quantize.encoders import ggml

Edit = Callable[[dict[str, KV]], object]


def with_metadata(good: Path, to: Path, edit: Edit) -> Path:
    """A copy of `good` whose metadata went through `edit`."""
    header = read_gguf(good)
    kv = {entry.key: entry for entry in header.kv}
    edit(kv)
    tensors = tuple(Tensor(name, TensorSource(s), s.shape) for name, s in header.tensors.items())
    plan = lay_out(to, GGUFModel(tuple(kv.values()), tensors), [s.type for s in header.tensors.values()])
    api.execute([plan], check=False)
    return to


def set_value(key: str, value: Any) -> Edit:
    def edit(kv: dict[str, KV]) -> None:
        kv[key] = replace(kv[key], value=value)

    return edit


def set_item(key: str, index: int, value: Any) -> Edit:
    def edit(kv: dict[str, KV]) -> None:
        items = list(kv[key].value)
        items[index] = value
        kv[key] = replace(kv[key], value=tuple(items))

    return edit


def drop(key: str) -> Edit:
    def edit(kv: dict[str, KV]) -> None:
        del kv[key]

    return edit


def cut_vocabulary(kv: dict[str, KV]) -> None:
    for key in ("tokens", "scores", "token_type"):
        key = f"tokenizer.ggml.{key}"
        kv[key] = replace(kv[key], value=kv[key].value[:-96])


class Weights:
    """A copy of a GGUF whose tensors can be changed in place."""

    def __init__(self, good: Path, to: Path) -> None:
        self.path = Path(shutil.copy(good, to))
        self.tensors = read_gguf(to).tensors

    def bytes(self, name: str) -> np.ndarray:
        where = self.tensors[name]
        return np.fromfile(self.path, np.uint8, where.nbytes, offset=where.offset).reshape(_rows(where), -1)

    def put(self, name: str, data: np.ndarray) -> None:
        where = self.tensors[name]
        assert data.nbytes == where.nbytes
        with self.path.open("r+b") as file:
            file.seek(where.offset)
            file.write(data.tobytes())

    def decoded(self, name: str) -> np.ndarray:
        where = self.tensors[name]
        return ggml.decode(self.bytes(name), where.type, where.shape[-1])

    def encode(self, name: str, values: np.ndarray) -> None:
        out = np.empty_like(self.bytes(name))
        ggml.encode(np.ascontiguousarray(values, np.float32), self.tensors[name].type, None, out)
        self.put(name, out)

    def swap(self, a: str, b: str) -> None:
        first, second = self.bytes(a), self.bytes(b)
        self.put(a, second)
        self.put(b, first)

    def flip(self, name: str, row: int, byte: int, mask: int) -> None:
        data = self.bytes(name)
        data[row, byte] ^= mask
        self.put(name, data)


Plant = Callable[[Weights], None]


def _rows(where: Slice) -> int:
    return int(np.prod(where.shape[:-1]))


def swapped_layers(w: Weights) -> None:
    w.swap("blk.2.ffn_up.weight", "blk.3.ffn_up.weight")


def swapped_kinds(w: Weights) -> None:
    w.swap("blk.1.ffn_up.weight", "blk.1.ffn_gate.weight")


def swapped_shapes(w: Weights) -> None:
    """As many bytes, another shape: the rows become nonsense."""
    w.swap("blk.4.ffn_up.weight", "blk.4.ffn_down.weight")


def permuted_head(w: Weights) -> None:
    data = w.bytes("blk.0.attn_q.weight")
    data[:128] = np.concatenate([data[64:128], data[:64]])
    w.put("blk.0.attn_q.weight", data)


def rotary_permutation(w: Weights) -> None:
    """What Llama's attention needs, done to a model that must not have it."""
    data = w.bytes("blk.5.attn_k.weight")
    w.put("blk.5.attn_k.weight", data.reshape(2, len(data) // 2, -1).swapaxes(0, 1).reshape(data.shape))


def norm_without_one(w: Weights) -> None:
    w.encode("blk.3.ffn_norm.weight", w.decoded("blk.3.ffn_norm.weight") - 1)


def scaled(w: Weights) -> None:
    w.encode("blk.2.attn_v.weight", w.decoded("blk.2.attn_v.weight") * np.float32(1.05))


def negated(w: Weights) -> None:
    w.encode("blk.2.attn_output.weight", -w.decoded("blk.2.attn_output.weight"))


def cut_off_rows(w: Weights) -> None:
    """The last rows were never written."""
    data = w.bytes("token_embd.weight")
    data[-7:] = 0
    w.put("token_embd.weight", data)


def nan_in_a_norm(w: Weights) -> None:
    data = w.decoded("output_norm.weight")
    data[0, 17] = np.nan
    w.put("output_norm.weight", data)


def nan_in_a_scale(w: Weights) -> None:
    """The first two bytes of a Q8_0 block, and of a Q4_K block, are a float16 scale."""
    name = "blk.1.attn_q.weight"
    data = w.bytes(name)
    data[33, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    w.put(name, data)


def infinity_in_a_scale(w: Weights) -> None:
    data = w.bytes("blk.1.attn_q.weight")
    data[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    w.put("blk.1.attn_q.weight", data)


def flipped_block(w: Weights) -> None:
    name = "blk.5.ffn_down.weight"
    block = 34 if w.tensors[name].type == T.Q8_0 else 210 if w.tensors[name].type == T.Q6_K else 144
    data = w.bytes(name)
    data[200, block : 2 * block] ^= 0x55
    w.put(name, data)


def flipped_bit(w: Weights) -> None:
    w.flip("blk.0.ffn_gate.weight", 511, 100, 1)
