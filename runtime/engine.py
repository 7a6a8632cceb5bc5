"""llama.cpp behind one class: a model, its vocabulary and one context. The only file that calls llama_cpp.

Nothing here prints, knows a chat template or guards against crashes.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama

from ..errors import BorealisError, InvalidInput
from .sampling import Sampling

Progress = Callable[[float], None]
"""Called with the loaded fraction, 0 to 1. What it raises stops the loading and reaches the caller."""

BATCH = 512
DEFAULT_CONTEXT = 8192
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_errors: list[str] = []


@llama.llama_log_callback
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR_LEVEL:
        _errors.append(text.decode("utf-8", "replace").strip())


class Engine:
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
        llama.llama_log_set(_keep_errors, ctypes.c_void_p(0))
        llama.llama_backend_init()
        _errors.clear()
        self.extra_buffers = extra_buffers
        self._context: Any = None
        self._model: Any = _load(path, extra_buffers, gpu_layers, on_progress)
        try:
            self._vocab: Any = llama.llama_model_get_vocab(self._model)
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
        if self._model is not None:
            llama.llama_model_free(self._model)
        self._context = self._model = None

    @property
    def bos(self) -> int | None:
        """The id a prompt begins with, or None."""
        vocab: Any = self._vocab
        bos: Any = llama.llama_vocab_bos(vocab)  # an int, whatever the binding declares
        return bos if llama.llama_vocab_get_add_bos(vocab) else None

    def token_text(self, id: int) -> str:
        """A token's name, `<bos>`; empty when there is no such token."""
        raw = llama.llama_vocab_get_text(self._vocab, id) if id >= 0 else None
        return raw.decode("utf-8", "replace") if raw else ""

    def is_control(self, id: int) -> bool:
        """Whether `tokenize` finds this token only with `special`."""
        hidden = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(llama.llama_vocab_get_attr(self._vocab, id) & hidden)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text` alone: no BOS is added. Names of control tokens become these tokens only if `special`."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise BorealisError(f"llama.cpp cannot tokenize a text of {len(data)} bytes ({count})")
        return list(ids[:count])

    def piece(self, id: int) -> bytes:
        """The bytes a generated token stands for; none for a control token."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama.llama_token_to_piece(self._vocab, id, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

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

    def decode(self, ids: Sequence[int]) -> None:
        """Read at most BATCH ids, after all read before."""
        _errors.clear()
        held = (llama.llama_token * len(ids))(*ids)  # the batch points into it
        status = llama.llama_decode(self._context, llama.llama_batch_get_one(held, len(ids)))
        if status:
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{_reason()})")


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
        raise raised[0] if raised else BorealisError(f"{path}: llama.cpp cannot load it{_reason()}")
    return model


def _new_context(path: Path, model: Any, n_context: int, threads: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = n_context
    params.n_batch = params.n_ubatch = min(BATCH, n_context)
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    context = llama.llama_init_from_model(model, params)
    if context is None:
        raise BorealisError(f"{path}: no room for a context of {n_context} tokens; ask for a smaller one{_reason()}")
    return context


def add_adapters(model: Any, context: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Load adapters, which are freed with the model, and have the context use all of them."""
    if not loras:
        return
    adapters = (llama.llama_adapter_lora_p_ctypes * len(loras))()
    for slot, (path, _) in enumerate(loras):
        _errors.clear()
        adapter: Any = llama.llama_adapter_lora_init(model, str(path).encode("utf-8", "surrogateescape"))
        if not adapter:
            raise BorealisError(f"{path}: llama.cpp cannot use this adapter{_reason()}")
        adapters[slot] = adapter
    scales = (ctypes.c_float * len(loras))(*(scale for _, scale in loras))
    if status := llama.llama_set_adapters_lora(context, adapters, len(loras), scales):
        raise BorealisError(f"{loras[0][0]}: llama.cpp cannot use the adapters together (status {status}{_reason()})")


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


def _reason() -> str:
    """What llama.cpp first complained of, as a clause: later lines repeat it in general words."""
    return f": {_errors[0]}" if _errors else ""
