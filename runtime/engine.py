"""llama.cpp behind one class: a model, its vocabulary and one context. With `vocabulary`, all that calls llama_cpp.

Nothing here prints, knows a chat template or guards against crashes.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from ..errors import BorealisError, InvalidInput
from .sampling import Sampling
from .vocabulary import Vocabulary, begin, errors, reason

Progress = Callable[[float], None]
"""Called with the loaded fraction, 0 to 1. What it raises stops the loading and reaches the caller."""

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
        on_progress: Progress | None = None,
    ) -> None:
        """`context` None means the model's own, at most DEFAULT_CONTEXT. Raises BorealisError, InvalidInput."""
        begin()
        self.extra_buffers = extra_buffers
        self._context: Any = None
        super().__init__(_load(path, extra_buffers, gpu_layers, on_progress))
        try:
            trained = llama.llama_model_n_ctx_train(self._model)
            if context is not None and not 0 < context <= trained:
                raise InvalidInput(f"{path}: a context of {context} tokens; this model can have 1 to {trained}")
            self.n_context = min(trained, DEFAULT_CONTEXT) if context is None else context
            self._context = _new_context(path, self._model, self.n_context, threads)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free context and model; a second call does nothing."""
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = None
        super().close()

    def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> Iterator[int]:
        """Read the prompt `ids`, then yield id after id until the model ends its turn or the context is full."""
        if not 0 < len(ids) < self.n_context:
            raise InvalidInput(
                f"the prompt is {len(ids)} tokens, the context {self.n_context}; shorten it or ask for more context"
            )
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        sampler = _new_sampler(sampling, seed, llama.llama_vocab_n_tokens(self._vocab))
        try:
            for start in range(0, len(ids), BATCH):
                self.decode(ids[start : start + BATCH])
            for _ in range(self.n_context - len(ids)):
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
        errors.clear()
        batch.n_tokens = len(ids)
        for n, id in enumerate(ids):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = id, start + n, 1, 0
            batch.logits[n] = start + n in wanted
        status = llama.llama_decode(self._context, batch)
        if status:
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")

    def decode(self, ids: Sequence[int]) -> None:
        """Read at most BATCH ids, after all read before."""
        errors.clear()
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
