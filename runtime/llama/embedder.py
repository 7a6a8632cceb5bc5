"""Texts as vectors: the mean of what the model makes of their tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp as llama
import numpy as np

from ...checkpoint.gguf import read_gguf
from ...errors import BorealisError, InvalidInput
from ..fitting.host_memory import host_memory
from ..fitting.memory_estimate import Sizes, estimate, sizes
from ..fitting.placement import in_words
from .vocabulary import forget, reason

if TYPE_CHECKING:
    from .engine import Engine

LONGEST = 512
"""Tokens of a text."""
PIECE = 64
"""Tokens of one computation. llama.cpp computes their logits too, and keeps them: 2 MB a token with a vocabulary of
262144. All 512 at once take 1 GB and are a sixth faster."""


def embedding_need(sizes: Sizes, longest: int) -> int:
    """Bytes of a context for texts of up to `longest` tokens, which comes with the first of them."""
    piece = min(PIECE, longest)
    need, _ = estimate(sizes, longest, outputs=piece, batch=piece)
    return need.cache + need.compute + (piece - 1) * 4 * sizes.n_vocab  # logits are copied out


class Embedder:
    """A second context of the engine's model; must be closed before the engine. For the engine's thread."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.longest = min(LONGEST, engine.n_context)
        self._check_room()
        params = llama.llama_context_default_params()
        params.n_ctx = self.longest
        params.n_batch = params.n_ubatch = params.n_outputs_max = min(PIECE, self.longest)
        params.n_threads = params.n_threads_batch = engine.threads
        params.embeddings, params.swa_full = True, False
        params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        forget()
        self._context: Any = llama.llama_init_from_model(engine.model, params)
        if self._context is None:
            raise BorealisError(f"{engine.path}: no room for computing embeddings{reason()}")

    def _check_room(self) -> None:
        """Raises BorealisError where the host has less memory free than this takes. A GPU's driver says so itself."""
        memory = host_memory()
        if self.engine.on_gpu or memory is None:
            return
        need = embedding_need(sizes(read_gguf(self.engine.path)), self.longest)
        if need > memory.free:
            raise BorealisError(
                f"{self.engine.path}: embeddings need {in_words(need)}, {in_words(memory.free)} are free; load the "
                "model with a smaller context or fewer answers at once"
            )

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = None

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """One vector, float32 [n_embd], of length 1."""
        if not 0 < len(ids) <= self.longest:
            raise InvalidInput(f"a text of {len(ids)} tokens; 1 to {self.longest} can be embedded")
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        starts = range(0, len(ids), PIECE)
        total = np.sum([self._sum(ids[start : start + PIECE]) for start in starts], axis=0)
        return (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)

    def _sum(self, ids: Sequence[int]) -> np.ndarray:
        """Of what the model makes of the next tokens, float64 [n_embd]."""
        forget()
        held = (llama.llama_token * len(ids))(*ids)  # the batch points into it
        if status := llama.llama_decode(self._context, llama.llama_batch_get_one(held, len(ids))):
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")
        found: Any = llama.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(found, (len(ids), self.engine.n_embd)).sum(axis=0, dtype=np.float64)
