"""Loads what an engine consists of: the model, its context, and LoRA adapters."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama

from ...errors import BorealisError
from .limits import BATCH, rounded_cells
from .vocabulary import clear_errors, encoded_path, error_clause

LoadProgress = Callable[[float], None]
"""Called with the loaded fraction, 0 to 1. What it raises stops the loading and reaches the caller."""

GGML_TYPE_BF16 = 30


def load_model(path: Path, fields: Mapping[str, Any], on_progress: LoadProgress | None) -> Any:
    """A `llama_model`, loaded with `fields` set in llama_model_params. Raises BorealisError."""
    raised: list[BaseException] = []

    @llama.llama_progress_callback
    def report(fraction: float, _: Any) -> bool:
        try:
            if on_progress is not None:
                on_progress(fraction)
        except BaseException as error:
            raised.append(error)
        return not raised

    params = llama.llama_model_default_params()
    for name, value in fields.items():
        setattr(params, name, value)
    params.progress_callback = report
    model = llama.llama_model_load_from_file(encoded_path(path), params)
    if model is None:
        raise raised[0] if raised else BorealisError(f"{path}: llama.cpp cannot load it{error_clause()}")
    return model


def new_context(
    path: Path, model: Any, n_context: int, parallel: int, outputs: int, batch_invariant: bool, threads: int
) -> Any:
    """A `llama_context` of `parallel` sequences of `n_context` tokens. Raises BorealisError where memory is short.

    On the CPU llama.cpp has three ways to compute attention over F16 keys and values, for 1, below 64 and from 64
    tokens of a sequence; their results differ in the third digit. Over BF16 it has one way for all, so that is the
    type of a `batch_invariant` cache.
    """
    params = llama.llama_context_default_params()
    params.n_ctx = parallel * rounded_cells(n_context)  # llama.cpp divides it among the sequences
    params.n_seq_max = parallel
    params.kv_unified = False  # every sequence has cells of its own: none can take another's
    params.n_batch = params.n_ubatch = BATCH
    params.n_outputs_max = outputs or parallel  # the logits of a batch are 0.5 GB with a vocabulary of 262144
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    if batch_invariant:
        params.type_k = params.type_v = GGML_TYPE_BF16
    context = llama.llama_init_from_model(model, params)
    if context is None:
        what = f"{n_context} tokens" if parallel == 1 else f"{parallel} × {n_context} tokens"
        raise BorealisError(f"{path}: no room for a context of {what}; ask for a smaller one{error_clause()}")
    return context


def add_adapters(model: Any, context: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Load adapters, which are freed with the model, and have the context use all of them."""
    if not loras:
        return
    adapters = (llama.llama_adapter_lora_p_ctypes * len(loras))()
    for index, (path, _) in enumerate(loras):
        clear_errors()
        adapter: Any = llama.llama_adapter_lora_init(model, encoded_path(path))
        if not adapter:
            raise BorealisError(f"{path}: llama.cpp cannot use this adapter{error_clause()}")
        adapters[index] = adapter
    scales = (ctypes.c_float * len(loras))(*(scale for _, scale in loras))
    if status := llama.llama_set_adapters_lora(context, adapters, len(loras), scales):
        raise BorealisError(
            f"{loras[0][0]}: llama.cpp cannot use the adapters together (status {status}{error_clause()})"
        )
