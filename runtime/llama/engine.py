"""llama.cpp behind one class: a model, its vocabulary and one context of several sequences.

Nothing here prints, knows a chat template, chooses what to compute next, or guards against crashes.
"""

import ctypes
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llama_cpp as llama
import numpy as np

from ...errors import BorealisError, InvalidInput
from .limits import BATCH, DEFAULT_CONTEXT, MAX_SEQUENCES, rounded_cells
from .loading import LoadProgress, add_adapters, load_model, new_context
from .vocabulary import Vocabulary, clear_errors, error_clause, init_llama

if TYPE_CHECKING:
    from .vision import VisionTower

untyped: Any = llama  # some declarations of llama_cpp do not fit what its functions take

ABORTED = 2  # llama_decode's status after an abort
SWA_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_SWA_ONLY


class BatchToken(NamedTuple):
    """One token to compute: its sequence, its position there, and whether the logits after it are wanted."""

    seq: int
    pos: int
    id: int
    logits: bool


class Engine(Vocabulary):
    """A loaded model and memory for `parallel` sequences of `n_context` tokens. For one thread at a time.

    `close()` frees the memory. `abort()` alone may be called from any thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int | None,
        threads: int,
        extra_buffers: bool,
        parallel: int = 1,
        outputs: int = 0,
        batch_invariant: bool = False,
        gpu_layers: int = -1,
        model_params: Mapping[str, Any] | None = None,
        vision_device: str | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        on_progress: LoadProgress | None = None,
    ) -> None:
        """`context` None means the model's own, at most DEFAULT_CONTEXT; `loras` are adapter GGUFs with their scales.

        outputs: most tokens of a batch whose logits are wanted; 0 is one of each sequence. batch_invariant: the
        results for a token do not depend on the other tokens of its batch (see `new_context`). model_params: fields
        of llama_model_params that replace those chosen here. vision_device: ggml's name of the device for the vision
        tower, None for any. Raises BorealisError, InvalidInput.
        """
        init_llama()
        self.path, self.threads, self.parallel, self.extra_buffers = path, threads, parallel, extra_buffers
        self.vision_device, self._outputs = vision_device, outputs or parallel
        self._context: Any = None
        self._batch: Any = None
        if not 1 <= parallel <= MAX_SEQUENCES:
            raise InvalidInput(f"parallel: {parallel} is not within 1 and {MAX_SEQUENCES}")
        params = {"n_gpu_layers": gpu_layers, "use_extra_bufts": extra_buffers, **(model_params or {})}
        self.on_gpu = params["n_gpu_layers"] != 0
        super().__init__(load_model(path, params, on_progress))
        try:
            self.n_context = self._checked_context(context)
            self.window: int = llama.llama_model_n_swa(self._model)
            self._context = new_context(path, self._model, self.n_context, parallel, outputs, batch_invariant, threads)
            self._batch = llama.llama_batch_init(BATCH, 0, 1)
            self._memory: Any = llama.llama_get_memory(self._context)
            self._set_abort_callback()
            add_adapters(self._model, self._context, loras)
        except BaseException:
            self.close()
            raise

    def _checked_context(self, context: int | None) -> int:
        trained = llama.llama_model_n_ctx_train(self._model)
        if context is not None and not 0 < context <= trained:
            raise InvalidInput(f"{self.path}: a context of {context} tokens; this model can have 1 to {trained}")
        return min(trained, DEFAULT_CONTEXT) if context is None else context

    def _set_abort_callback(self) -> None:
        """Have llama.cpp read `_abort` between any two steps of a computation.

        The callback is C's strlen, and the flag a C string: empty to go on, of one character to stop. So no Python
        runs between steps, of which a token has hundreds.
        """
        self._abort = ctypes.create_string_buffer(2)
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        self._strlen = ctypes.cast(library.strlen, llama.ggml_abort_callback)
        untyped.llama_set_abort_callback(self._context, self._strlen, ctypes.addressof(self._abort))

    def abort(self, abort: bool = True) -> None:
        """End the running `decode` early; with False take that back."""
        self._abort[0] = b"\x01" if abort else b"\x00"

    def close(self) -> None:
        """Free context and model; a second call does nothing."""
        if self._batch is not None:
            llama.llama_batch_free(self._batch)
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = self._batch = None
        super().close()

    def decode(self, tokens: Sequence[BatchToken]) -> bool:
        """Compute at most BATCH tokens. False: aborted, and every sequence is as it was before.

        Raises BorealisError when llama.cpp cannot.
        """
        batch = self._batch
        for n, (seq, pos, id, logits) in enumerate(tokens):
            batch.token[n], batch.pos[n], batch.logits[n] = id, pos, logits
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, seq
        batch.n_tokens = len(tokens)
        clear_errors()
        status = llama.llama_decode(self._context, batch)
        if status:
            for seq in {token.seq for token in tokens}:
                self.truncate(seq, min(token.pos for token in tokens if token.seq == seq))
        if status not in (0, ABORTED):
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{error_clause()})")
        return not status

    def prefill(self, seq: int, pos: int, ids: Sequence[int]) -> None:
        """Compute `ids` from position `pos` of the sequence on, with the logits after the last one."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            last = len(ids) - 1 - start
            self.decode([BatchToken(seq, pos + start + n, id, n == last) for n, id in enumerate(part)])

    def decode_features(self, seq: int, pos: int, features: np.ndarray) -> bool:
        """Compute an image, float32 [tokens, n_embd], at `pos`. Its tokens attend to each other, later ones too.

        False: aborted, as in `decode`.
        """
        count = len(features)
        if count > BATCH:
            raise InvalidInput(f"an image of {count} tokens; {BATCH} are the most that can be read here")
        clear_errors()
        batch = llama.llama_batch_init(count, features.shape[1], 1)
        try:
            ctypes.memmove(batch.embd, np.ascontiguousarray(features, np.float32).ctypes.data, 4 * features.size)
            batch.n_tokens = count
            for i in range(count):
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = pos + i, 1, seq, 0
            llama.llama_set_causal_attn(self._context, False)
            status = llama.llama_decode(self._context, batch)
        finally:
            llama.llama_set_causal_attn(self._context, True)
            llama.llama_batch_free(batch)
        if status:
            self.truncate(seq, pos)
        if status not in (0, ABORTED):
            raise BorealisError(f"llama.cpp stopped while reading an image (status {status}{error_clause()})")
        return not status

    def truncate(self, seq: int, length: int) -> None:
        """Remove what the sequence holds from position `length` on."""
        if not llama.llama_memory_seq_rm(self._memory, seq, length, -1):
            llama.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def copy(self, source: int, to: int) -> None:
        """Make sequence `to` hold what `source` holds."""
        llama.llama_memory_seq_rm(self._memory, to, -1, -1)
        llama.llama_memory_seq_cp(self._memory, source, to, -1, -1)

    def first_position(self, seq: int) -> int:
        """The first position whose keys and values are all in the cache: sliding windows drop old ones. -1: none."""
        return llama.llama_memory_seq_pos_min(self._memory, seq)

    def state(self, seq: int, window_only: bool = False, most: int | None = None) -> np.ndarray:
        """Keys and values of a sequence, uint8 [bytes]; with `window_only` those that sliding windows drop.

        Empty if they are more than `most` bytes.
        """
        flags = SWA_ONLY if window_only else 0
        size = untyped.llama_state_seq_get_size_ext(self._context, seq, flags)
        if most is not None and size > most:
            return np.empty(0, np.uint8)
        data = np.empty(size, np.uint8)
        written = untyped.llama_state_seq_get_data_ext(self._context, _bytes_pointer(data), size, seq, flags)
        if written != size:
            raise BorealisError(f"llama.cpp cannot give the state of a conversation{error_clause()}")
        return data

    def restore(self, seq: int, state: bytes | np.ndarray, window_only: bool = False) -> bool:
        """Put back what `state` gave, of this very model and settings; False when llama.cpp refuses it."""
        flags = SWA_ONLY if window_only else 0
        data = _bytes_pointer(np.frombuffer(state, np.uint8))
        return bool(untyped.llama_state_seq_set_data_ext(self._context, data, len(state), seq, flags))

    def logits_at(self, n: int) -> np.ndarray:
        """The logits after token `n` of the last `decode` (-1: the last token): a view, float32 [n_vocab]."""
        found: Any = llama.llama_get_logits_ith(self._context, n)
        row: Any = (ctypes.c_float * self.n_vocab).from_address(ctypes.addressof(found.contents))
        return np.frombuffer(row, np.float32)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """The logits after each of `positions` of the prompt `ids`, float32 [len(positions), n_vocab]."""
        if not 0 < len(ids) <= self.n_context:
            raise InvalidInput(f"{len(ids)} tokens do not fit the context of {self.n_context}")
        self.truncate(0, 0)
        row_of = {position: row for row, position in enumerate(positions)}
        rows = np.empty((len(positions), self.n_vocab), np.float32)
        for batch in _batches(ids, row_of, self._outputs):
            self.decode(batch)
            for n, token in enumerate(batch):
                if token.logits:
                    rows[row_of[token.pos]] = self.logits_at(n)
        return rows

    def load_vision(self, mmproj: Path) -> "VisionTower":
        """Load the vision tower; it must be closed before this engine."""
        from .vision import VisionTower

        device, gpu = self.vision_device, self.on_gpu
        return VisionTower(mmproj, self._model, n_embd=self.n_embd, threads=self.threads, gpu=gpu, device=device)

    @property
    def window_cells(self) -> int:
        """How many cells the KV cache has for sliding windows, used as a ring buffer; 0 without windows."""
        cells = min(rounded_cells(self.n_context), self.window + BATCH)
        return rounded_cells(cells) if self.window else 0

    @property
    def context(self) -> Any:
        """The `llama_context`, for `sampler`."""
        return self._context

    @property
    def model(self) -> Any:
        """The `llama_model`, for `embedder`."""
        return self._model

    @property
    def n_embd(self) -> int:
        return llama.llama_model_n_embd(self._model)


def _bytes_pointer(data: np.ndarray) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _batches(ids: Sequence[int], wanted: Container[int], outputs: int) -> Iterable[list[BatchToken]]:
    """Batches of sequence 0, each with at most `outputs` of the `wanted` positions."""
    batch: list[BatchToken] = []
    for pos, id in enumerate(ids):
        if len(batch) == BATCH or (pos in wanted and sum(token.logits for token in batch) == outputs):
            yield batch
            batch = []
        batch.append(BatchToken(0, pos, id, pos in wanted))
    yield batch
