"""llama.cpp behind one class: a model, its vocabulary and one context. Only `vision` and `vocabulary` call it too.

Nothing here prints, knows a chat template or guards against crashes.
"""

import ctypes
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp as llama
import numpy as np

from ..errors import BorealisError, InvalidInput
from .sampling import Sampling
from .vocabulary import Vocabulary, begin, forget, reason

if TYPE_CHECKING:
    from .vision import Vision

Progress = Callable[[float], None]
"""Called with the loaded fraction, 0 to 1. What it raises stops the loading and reaches the caller."""

Placed = tuple[int, np.ndarray]
"""An image as `vision` gives it, float32 [tokens, n_embd], and the index of the id it is read before."""

BATCH = 512
DEFAULT_CONTEXT = 8192


class Engine(Vocabulary):
    """A loaded model. One thread at a time, one text at a time; `close()` gives the memory back."""

    def __init__(
        self,
        path: Path,
        *,
        context: int | None,
        threads: int,
        extra_buffers: bool,
        gpu_layers: int = -1,
        loras: Sequence[tuple[Path, float]] = (),
        on_progress: Progress | None = None,
    ) -> None:
        """`context` None means the model's own, at most DEFAULT_CONTEXT; `loras` are adapter GGUFs with their scales.

        Raises BorealisError, InvalidInput.
        """
        begin()
        self.extra_buffers = extra_buffers
        self.threads, self.gpu_layers = threads, gpu_layers
        self._context: Any = None
        super().__init__(_load(path, extra_buffers, gpu_layers, on_progress))
        try:
            trained = llama.llama_model_n_ctx_train(self._model)
            if context is not None and not 0 < context <= trained:
                raise InvalidInput(f"{path}: a context of {context} tokens; this model can have 1 to {trained}")
            self.n_context = min(trained, DEFAULT_CONTEXT) if context is None else context
            self._context = _new_context(path, self._model, self.n_context, threads)
            add_adapters(self._model, self._context, loras)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free context and model; a second call does nothing."""
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = None
        super().close()

    def generate(
        self, ids: Sequence[int], sampling: Sampling, seed: int, images: Sequence[Placed] = ()
    ) -> Iterator[int]:
        """Read the prompt `ids`, then yield id after id until the model ends its turn or the context is full.

        Each of `images` is read before the id at its place; the places ascend.
        """
        length = len(ids) + sum(len(features) for _, features in images)
        if not 0 < length < self.n_context or not ids:
            raise InvalidInput(
                f"the prompt is {length} tokens, the context {self.n_context}; shorten it or ask for more context"
            )
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        sampler = _new_sampler(sampling, seed, llama.llama_vocab_n_tokens(self._vocab))
        try:
            self._read(ids, images)
            for _ in range(self.n_context - length):
                id = llama.llama_sampler_sample(sampler, self._context, -1)
                if llama.llama_vocab_is_eog(self._vocab, id):
                    return
                yield id
                self.decode([id])
        finally:
            llama.llama_sampler_free(sampler)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """What the model makes of `ids`: the logits after each of `positions`, float32 [len(positions), n_vocab]."""
        if not 0 < len(ids) <= self.n_context:
            raise InvalidInput(f"{len(ids)} tokens do not fit the context of {self.n_context}")
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        rows = np.empty((len(positions), llama.llama_vocab_n_tokens(self._vocab)), np.float32)
        wanted = {position: row for row, position in enumerate(positions)}
        batch = llama.llama_batch_init(BATCH, 0, 1)
        try:
            for start in range(0, len(ids), BATCH):
                self._decode_for(batch, ids[start : start + BATCH], start, wanted)
                for n in range(batch.n_tokens):
                    if start + n in wanted:
                        found: Any = llama.llama_get_logits_ith(self._context, n)
                        rows[wanted[start + n]] = np.ctypeslib.as_array(found, (rows.shape[1],))
        finally:
            llama.llama_batch_free(batch)
        return rows

    def _decode_for(self, batch: Any, ids: Sequence[int], start: int, wanted: Container[int]) -> None:
        """Read `ids` at the positions from `start` on; logits are kept for those `wanted`."""
        forget()
        batch.n_tokens = len(ids)
        for n, id in enumerate(ids):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = id, start + n, 1, 0
            batch.logits[n] = start + n in wanted
        status = llama.llama_decode(self._context, batch)
        if status:
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")

    def _read(self, ids: Sequence[int], images: Sequence[Placed]) -> None:
        read = 0
        for place, features in (*images, (len(ids), None)):
            for start in range(read, place, BATCH):
                self.decode(ids[start : min(start + BATCH, place)])
            if features is not None:
                self.decode_features(features)
            read = place

    def decode_features(self, features: np.ndarray) -> None:
        """Read an image, float32 [tokens, n_embd], after all read before. Its tokens see each other, later ones too."""
        count, n_embd = features.shape
        if count > BATCH:
            raise InvalidInput(f"an image of {count} tokens; {BATCH} are the most that can be read here")
        forget()
        batch = llama.llama_batch_init(count, n_embd, 1)
        try:
            ctypes.memmove(batch.embd, np.ascontiguousarray(features, np.float32).ctypes.data, 4 * features.size)
            memory: Any = llama.llama_get_memory(self._context)
            first = llama.llama_memory_seq_pos_max(memory, 0) + 1
            batch.n_tokens = count
            for i in range(count):
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = first + i, 1, 0, 0
            llama.llama_set_causal_attn(self._context, False)
            status = llama.llama_decode(self._context, batch)
        finally:
            llama.llama_set_causal_attn(self._context, True)
            llama.llama_batch_free(batch)
        if status:
            raise BorealisError(f"llama.cpp stopped while reading an image (status {status}{reason()})")

    def see(self, mmproj: Path) -> "Vision":
        """Load the side that sees; it must be closed before this engine."""
        from .vision import Vision

        return Vision(mmproj, self._model, n_embd=self.n_embd, threads=self.threads, gpu=self.gpu_layers != 0)

    @property
    def n_embd(self) -> int:
        return llama.llama_model_n_embd(self._model)

    def decode(self, ids: Sequence[int]) -> None:
        """Read at most BATCH ids, after all read before."""
        forget()
        held = (llama.llama_token * len(ids))(*ids)  # the batch points into it
        status = llama.llama_decode(self._context, llama.llama_batch_get_one(held, len(ids)))
        if status:
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")


def _load(path: Path, extra_buffers: bool, gpu_layers: int, on_progress: Progress | None) -> Any:
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
    params.use_extra_bufts = extra_buffers
    params.n_gpu_layers = gpu_layers
    params.progress_callback = report
    model = llama.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), params)
    if model is None:
        raise raised[0] if raised else BorealisError(f"{path}: llama.cpp cannot load it{reason()}")
    return model


def _new_context(path: Path, model: Any, n_context: int, threads: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = n_context
    params.n_batch = params.n_ubatch = min(BATCH, n_context)
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    context = llama.llama_init_from_model(model, params)
    if context is None:
        raise BorealisError(f"{path}: no room for a context of {n_context} tokens; ask for a smaller one{reason()}")
    return context


def add_adapters(model: Any, context: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Load adapters, which are freed with the model, and have the context use all of them."""
    if not loras:
        return
    adapters = (llama.llama_adapter_lora_p_ctypes * len(loras))()
    for slot, (path, _) in enumerate(loras):
        forget()
        adapter: Any = llama.llama_adapter_lora_init(model, str(path).encode("utf-8", "surrogateescape"))
        if not adapter:
            raise BorealisError(f"{path}: llama.cpp cannot use this adapter{reason()}")
        adapters[slot] = adapter
    scales = (ctypes.c_float * len(loras))(*(scale for _, scale in loras))
    if status := llama.llama_set_adapters_lora(context, adapters, len(loras), scales):
        raise BorealisError(f"{loras[0][0]}: llama.cpp cannot use the adapters together (status {status}{reason()})")


def _new_sampler(sampling: Sampling, seed: int, n_vocab: int) -> Any:
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    steps = []
    if sampling.repeat_penalty != 1.0:
        steps.append(
            llama.llama_sampler_init_penalties(n_vocab, sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0)
        )
    if sampling.temperature == 0:
        steps.append(llama.llama_sampler_init_greedy())
    else:
        steps.append(llama.llama_sampler_init_top_k(sampling.top_k))
        steps.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        steps.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        steps.append(llama.llama_sampler_init_temp(sampling.temperature))
        steps.append(llama.llama_sampler_init_dist(seed))
    for step in steps:
        llama.llama_sampler_chain_add(chain, step)
    return chain
