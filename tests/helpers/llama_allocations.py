"""What llama.cpp says it allocates for a model and a context, read from its log."""

import ctypes
import re
from collections import Counter
from pathlib import Path
from typing import Any

import llama_cpp as llama

from .llama_quantize import LOG, keep

BUFFER = re.compile(r"\s(\S+)\s+(model|KV|compute|output) buffer size =\s+([\d.]+) MiB")
CACHE = re.compile(r"size =\s+([\d.]+) MiB \(\s*\d+ cells")


def allocations(
    path: Path, n_ctx: int, parallel: int, *, n_outputs: int = 0, pretend: bool = False, **model: Any
) -> Counter[str]:
    """Bytes of "model", "KV", "compute" and "output" buffers; `model` are fields of llama_model_params.

    With `pretend`, llama.cpp only computes the sizes of all but the output buffer, and tells no weights'.
    Without "extra" buffers unless `model` says use_extra_bufts=True: what a CPU lays out anew differs.
    """
    llama.llama_log_set(keep, ctypes.c_void_p(0))
    params: Any = llama.llama_model_default_params()
    params.use_extra_bufts, params.no_alloc = False, pretend
    if pretend:
        params.load_mode = llama.LLAMA_LOAD_MODE_NONE
    for name, value in model.items():
        setattr(params, name, value)
    LOG.clear()
    loaded: Any = llama.llama_model_load_from_file(str(path).encode(), params)
    assert loaded, "".join(LOG)
    try:
        settings: Any = llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = n_ctx, parallel
        settings.n_batch = settings.n_ubatch = min(512, n_ctx)
        settings.n_outputs_max = n_outputs
        settings.n_threads = settings.n_threads_batch = 1
        settings.swa_full = settings.kv_unified = False
        context: Any = llama.llama_init_from_model(loaded, settings)
        assert context, "".join(LOG)
        llama.llama_free(context)
    finally:
        llama.llama_model_free(loaded)
    return read_log("".join(LOG), pretend)


def read_log(log: str, pretend: bool = False) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, what, size in BUFFER.findall(log):
        found[what] += mebibytes(size)
    if pretend:
        found["KV"] = sum(map(mebibytes, CACHE.findall(log)))
    return found


def mebibytes(text: str) -> int:
    return round(float(text) * 2**20)
