"""llama.cpp behind one class: a model, its vocabulary and one context of several sequences.

`vision`, `vocabulary`, `sampler` and `embedder` call it too, nothing else does. Nothing here prints, knows a chat
template, chooses what to compute next, or guards against crashes.
"""

import ctypes
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llama_cpp as llama
import numpy as np

from ...errors import BorealisError, InvalidInput
from ..fitting.placement import DEFAULT_CONTEXT
from .vocabulary import Vocabulary, begin, forget, reason

if TYPE_CHECKING:
    from .vision import Vision

Progress = Callable[[float], None]
"""Called with the loaded fraction, 0 to 1. What it raises stops the loading and reaches the caller."""

low: Any = llama  # some of its declarations do not fit what its functions take

BATCH = 512
"""Most tokens of one computation; an image must fit in one."""
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
ABORTED = 2
GGML_TYPE_BF16 = 30
SWA_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_SWA_ONLY


class Cell(NamedTuple):
    """One token to compute: its sequence, its place there, and whether logits after it are wanted."""

    seq: int
    pos: int
    id: int
    logits: bool


class Engine(Vocabulary):
    """A loaded model and memory for `parallel` sequences of `n_context` tokens. One thread at a time.

    `close()` gives the memory back. `abort()` alone may be called from any thread.
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
        steady: bool = False,
        gpu_layers: int = -1,
        model_params: Mapping[str, Any] | None = None,
        vision_device: str | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        on_progress: Progress | None = None,
    ) -> None:
        """`context` None means the model's own, at most DEFAULT_CONTEXT; `loras` are adapter GGUFs with their scales.

        outputs: most tokens of a batch whose logits are wanted; 0 is one of each sequence. steady: what is computed
        of a token does not depend on what else is in its batch (see `_new_context`). model_params: fields of
        llama_model_params over those chosen here. vision_device: ggml's name of the device that sees, None for any.
        Raises BorealisError, InvalidInput.
        """
        begin()
        self.path, self.threads, self.parallel, self.extra_buffers = path, threads, parallel, extra_buffers
        self.vision_device, self._outputs = vision_device, outputs or parallel
        self._context: Any = None
        self._batch: Any = None
        self._abort = ctypes.create_string_buffer(2)
        if not 1 <= parallel <= MAX_SEQUENCES:
            raise InvalidInput(f"parallel: {parallel} is not within 1 and {MAX_SEQUENCES}")
        params = {"n_gpu_layers": gpu_layers, "use_extra_bufts": extra_buffers, **(model_params or {})}
        self.on_gpu = params["n_gpu_layers"] != 0
        super().__init__(_load(path, params, on_progress))
        try:
            trained = llama.llama_model_n_ctx_train(self._model)
            if context is not None and not 0 < context <= trained:
                raise InvalidInput(f"{path}: a context of {context} tokens; this model can have 1 to {trained}")
            self.n_context = min(trained, DEFAULT_CONTEXT) if context is None else context
            self.window: int = llama.llama_model_n_swa(self._model)
            self._context = _new_context(path, self._model, self.n_context, parallel, outputs, steady, threads)
            self._batch = llama.llama_batch_init(BATCH, 0, 1)
            self._memory: Any = llama.llama_get_memory(self._context)
            self._listen()
            add_adapters(self._model, self._context, loras)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        """Have llama.cpp look at `_abort` between any two steps.

        C's strlen is the whole callback: the flag is a text, empty to go on, of one character to stop. Nothing of
        Python runs between steps, of which a token has hundreds.
        """
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        self._strlen = ctypes.cast(library.strlen, llama.ggml_abort_callback)
        low.llama_set_abort_callback(self._context, self._strlen, ctypes.addressof(self._abort))

    def abort(self, wanted: bool = True) -> None:
        """End the running `decode` early; with False take that back."""
        self._abort[0] = b"\x01" if wanted else b"\x00"

    def close(self) -> None:
        """Free context and model; a second call does nothing."""
        if self._batch is not None:
            llama.llama_batch_free(self._batch)
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = self._batch = None
        super().close()

    def decode(self, cells: Sequence[Cell]) -> bool:
        """Compute at most BATCH tokens. False: aborted, and every sequence is as it was before.

        Raises BorealisError when llama.cpp cannot.
        """
        batch = self._batch
        for n, (seq, pos, id, logits) in enumerate(cells):
            batch.token[n], batch.pos[n], batch.logits[n] = id, pos, logits
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, seq
        batch.n_tokens = len(cells)
        forget()
        status = llama.llama_decode(self._context, batch)
        if status:
            for seq in {cell.seq for cell in cells}:
                self.cut(seq, min(cell.pos for cell in cells if cell.seq == seq))
        if status not in (0, ABORTED):
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")
        return not status

    def read(self, seq: int, pos: int, ids: Sequence[int]) -> None:
        """Compute `ids`, from `pos` of the sequence on; logits are there after the last one."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            last = len(ids) - 1 - start
            self.decode([Cell(seq, pos + start + n, id, n == last) for n, id in enumerate(part)])

    def decode_features(self, seq: int, pos: int, features: np.ndarray) -> bool:
        """Read an image, float32 [tokens, n_embd], at `pos`. Its tokens see each other, later ones too.

        False: aborted, as in `decode`.
        """
        count = len(features)
        if count > BATCH:
            raise InvalidInput(f"an image of {count} tokens; {BATCH} are the most that can be read here")
        forget()
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
            self.cut(seq, pos)
        if status not in (0, ABORTED):
            raise BorealisError(f"llama.cpp stopped while reading an image (status {status}{reason()})")
        return not status

    def cut(self, seq: int, length: int) -> None:
        """Forget what the sequence holds from place `length` on."""
        if not llama.llama_memory_seq_rm(self._memory, seq, length, -1):
            llama.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def copy(self, source: int, to: int) -> None:
        """Make sequence `to` hold what `source` holds."""
        llama.llama_memory_seq_rm(self._memory, to, -1, -1)
        llama.llama_memory_seq_cp(self._memory, source, to, -1, -1)

    def first_held(self, seq: int) -> int:
        """The first place whose keys and values are all still there: sliding windows forget. -1: none."""
        return llama.llama_memory_seq_pos_min(self._memory, seq)

    def state(self, seq: int, window_only: bool = False, most: int | None = None) -> "ctypes.Array[ctypes.c_uint8]":
        """Keys and values of a sequence; with `window_only` those that sliding windows forget.

        Empty if they are more than `most` bytes.
        """
        flags = SWA_ONLY if window_only else 0
        size = low.llama_state_seq_get_size_ext(self._context, seq, flags)
        if most is not None and size > most:
            return (ctypes.c_uint8 * 0)()
        data = (ctypes.c_uint8 * size)()
        written = low.llama_state_seq_get_data_ext(self._context, data, size, seq, flags)
        if written != size:
            raise BorealisError(f"llama.cpp cannot give the state of a conversation{reason()}")
        return data

    def restore(self, seq: int, state: "ctypes.Array[ctypes.c_uint8]", window_only: bool = False) -> bool:
        """Put back what `state` gave, of this very model and settings; False when llama.cpp refuses it."""
        flags = SWA_ONLY if window_only else 0
        return bool(low.llama_state_seq_set_data_ext(self._context, state, len(state), seq, flags))

    def logits_at(self, n: int) -> np.ndarray:
        """The logits after cell `n` of the last `decode` (-1: the last cell): a view, float32 [n_vocab]."""
        found: Any = llama.llama_get_logits_ith(self._context, n)
        row: Any = (ctypes.c_float * self.n_vocab).from_address(ctypes.addressof(found.contents))
        return np.frombuffer(row, np.float32)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """What the model makes of `ids`: the logits after each of `positions`, float32 [len(positions), n_vocab]."""
        if not 0 < len(ids) <= self.n_context:
            raise InvalidInput(f"{len(ids)} tokens do not fit the context of {self.n_context}")
        self.cut(0, 0)
        wanted = {position: row for row, position in enumerate(positions)}
        rows = np.empty((len(positions), self.n_vocab), np.float32)
        for cells in _chunks(ids, wanted, self._outputs):
            self.decode(cells)
            for n, cell in enumerate(cells):
                if cell.logits:
                    rows[wanted[cell.pos]] = self.logits_at(n)
        return rows

    def see(self, mmproj: Path) -> "Vision":
        """Load the side that sees; it must be closed before this engine."""
        from .vision import Vision

        device = self.vision_device
        return Vision(mmproj, self._model, n_embd=self.n_embd, threads=self.threads, gpu=self.on_gpu, device=device)

    @property
    def ring(self) -> int:
        """How many places sliding windows are kept in, which are used round and round; 0 without windows."""
        cells = -(-self.n_context // 256) * 256
        return -(-min(cells, self.window + BATCH) // 256) * 256 if self.window else 0

    @property
    def context(self) -> Any:
        """llama.cpp's own, for `sampler`."""
        return self._context

    @property
    def model(self) -> Any:
        """llama.cpp's own, for `embedder`."""
        return self._model

    @property
    def n_embd(self) -> int:
        return llama.llama_model_n_embd(self._model)


def _chunks(ids: Sequence[int], wanted: Container[int], outputs: int) -> Iterable[list[Cell]]:
    """Batches of sequence 0 with at most `outputs` wanted places each."""
    cells: list[Cell] = []
    for place, id in enumerate(ids):
        if len(cells) == BATCH or (place in wanted and sum(cell.logits for cell in cells) == outputs):
            yield cells
            cells = []
        cells.append(Cell(0, place, id, place in wanted))
    yield cells


def _load(path: Path, fields: Mapping[str, Any], on_progress: Progress | None) -> Any:
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
    model = llama.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), params)
    if model is None:
        raise raised[0] if raised else BorealisError(f"{path}: llama.cpp cannot load it{reason()}")
    return model


def _new_context(
    path: Path, model: Any, n_context: int, parallel: int, outputs: int, steady: bool, threads: int
) -> Any:
    """On the CPU llama.cpp has three ways to compute attention over F16 keys and values, for 1, below 64 and from 64
    tokens of a sequence; their results differ in the third digit. Over BF16 it has one way for all."""
    params = llama.llama_context_default_params()
    params.n_ctx = parallel * -(-n_context // 256) * 256  # llama.cpp rounds up too, and shares it out
    params.n_seq_max = parallel
    params.kv_unified = False  # every sequence has its own room: none can take another's
    params.n_batch = params.n_ubatch = BATCH
    params.n_outputs_max = outputs or parallel  # the logits of a batch are 0.5 GB with a vocabulary of 262144
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    if steady:
        params.type_k = params.type_v = GGML_TYPE_BF16
    context = llama.llama_init_from_model(model, params)
    if context is None:
        what = f"{n_context} tokens" if parallel == 1 else f"{parallel} × {n_context} tokens"
        raise BorealisError(f"{path}: no room for a context of {what}; ask for a smaller one{reason()}")
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
