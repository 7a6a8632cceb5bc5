"""llama.cpp's own quantizer, as llama-cpp-python binds it: what our bytes and types are compared with."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf.constants import GGUFValueType

from borealis_gguf.checkpoint.types import KV
from borealis_gguf.quantize.choose import TypeOptions
from borealis_gguf.quantize.presets import Preset

LOG: list[str] = []
"""What llama.cpp has said in the running test."""


@llama_cpp.llama_log_callback
def keep(level: int, text: bytes, data: object) -> None:
    LOG.append(text.decode("utf-8", "replace"))


def llama_quantize(
    source: Path,
    out: Path,
    preset: Preset,
    options: TypeOptions | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    overrides: Sequence[KV] = (),
    *,
    dry_run: bool = False,
    allow_requantize: bool = False,
    threads: int = 1,
) -> tuple[bool, str]:
    """Run llama.cpp's quantizer; returns whether it succeeded, and everything it logged."""
    options = options or TypeOptions()
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.pure, params.dry_run = threads, options.pure, dry_run
    params.allow_requantize = allow_requantize
    params.only_copy, params.ftype = preset.ftype is None, preset.ftype or 0
    params.quantize_output_tensor = not options.leave_output_tensor
    if options.output_tensor_type is not None:
        params.output_tensor_type = int(options.output_tensor_type)
    if options.token_embedding_type is not None:
        params.token_embedding_type = int(options.token_embedding_type)
    patterns = [(text.encode(), int(type)) for text, type in options.tensor_types]
    params.tt_overrides = (llama_cpp.llama_model_tensor_override * (len(patterns) + 1))(*patterns, (None, 0))
    entries = importance or ({"nothing": np.ones(1, np.float32)} if options.has_imatrix else {})
    if entries:
        floats = ctypes.POINTER(ctypes.c_float)
        rows = [(name.encode(), values.ctypes.data_as(floats), values.size) for name, values in entries.items()]
        params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
    params.kv_overrides = _overrides(overrides)
    LOG.clear()
    quantize: Any = llama_cpp.llama_model_quantize
    failed = quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    return not failed, "".join(LOG)


def _overrides(entries: Sequence[KV]) -> Any:
    slots = (llama_cpp.llama_model_kv_override * (len(entries) + 1))()
    for slot, entry in zip(slots, entries, strict=False):
        slot.key = entry.key.encode()
        if entry.type is GGUFValueType.STRING:
            slot.tag, slot.value.val_str = 3, entry.value.encode("utf-8", "surrogateescape")
        elif entry.type is GGUFValueType.BOOL:
            slot.tag, slot.value.val_bool = 2, entry.value
        elif entry.type is GGUFValueType.FLOAT32:
            slot.tag, slot.value.val_f64 = 1, entry.value
        else:
            slot.tag, slot.value.val_i64 = 0, entry.value
    return slots
