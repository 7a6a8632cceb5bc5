"""The logits llama.cpp computes with a GGUF, in float32 throughout: no flash attention, no half-precision cache."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from borealis_gguf.runtime.llama.loading import add_adapters

F32_CACHE = 0


@llama.llama_log_callback
def _quiet(level: int, text: bytes, data: object) -> None:
    pass


def llama_logits(path: Path, prompts: Sequence[Sequence[int]], loras: Sequence[tuple[Path, float]] = ()) -> np.ndarray:
    """float32 [positions of all prompts, vocabulary], with these adapters at these scales."""
    llama.llama_log_set(_quiet, ctypes.c_void_p(0))
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model: Any = llama.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(len(ids) for ids in prompts)
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = F32_CACHE
    settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context: Any = llama.llama_init_from_model(model, settings)
    try:
        add_adapters(model, context, loras)
        return np.concatenate([_logits(model, context, ids) for ids in prompts])
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)


def _logits(model: Any, context: Any, ids: Sequence[int]) -> np.ndarray:
    memory: Any = llama.llama_get_memory(context)
    llama.llama_memory_clear(memory, True)
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, id in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = id, i, 1, True
        batch.seq_id[i][0] = 0
    try:
        assert llama.llama_decode(context, batch) == 0
        vocab: Any = llama.llama_model_get_vocab(model)
        found: Any = llama.llama_get_logits(context)
        return np.ctypeslib.as_array(found, (len(ids), llama.llama_vocab_n_tokens(vocab))).copy()
    finally:
        llama.llama_batch_free(batch)
