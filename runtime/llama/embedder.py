"""Embeddings of texts: the mean of the hidden states of their tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp as llama
import numpy as np

from ...checkpoint.gguf import read_gguf
from ...errors import BorealisError, InvalidInput
from ...size_format import format_nbytes
from ..fitting.host_memory import host_memory
from ..fitting.memory_estimate import ModelSizes, estimate, sizes
from .vocabulary import clear_errors, error_clause

if TYPE_CHECKING:
    from .engine import Engine

MAX_EMBED_TOKENS = 512
"""Most tokens of a text."""
EMBED_BATCH = 64
"""Tokens of one batch. llama.cpp computes and keeps their logits too: 2 MB a token with a vocabulary of 262144. A batch
of 512 takes 1 GB and is a sixth faster."""


def embedding_nbytes(sizes: ModelSizes, longest: int) -> int:
    """Bytes of a context for texts of up to `longest` tokens. It is allocated for the first text."""
    batch = min(EMBED_BATCH, longest)
    need, _ = estimate(sizes, longest, outputs=batch, batch=batch)
    return need.cache + need.compute + (batch - 1) * 4 * sizes.n_vocab  # logits are copied out


class Embedder:
    """A second context of the engine's model; must be closed before the engine. For the engine's thread only."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.longest = min(MAX_EMBED_TOKENS, engine.n_context)
        self._check_memory()
        params = llama.llama_context_default_params()
        params.n_ctx = self.longest
        params.n_batch = params.n_ubatch = params.n_outputs_max = min(EMBED_BATCH, self.longest)
        params.n_threads = params.n_threads_batch = engine.threads
        params.embeddings, params.swa_full = True, False
        params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        clear_errors()
        self._context: Any = llama.llama_init_from_model(engine.model, params)
        if self._context is None:
            raise BorealisError(f"{engine.path}: no room for computing embeddings{error_clause()}")

    def _check_memory(self) -> None:
        """Raises BorealisError where the host has too little memory free. A GPU's driver reports that."""
        memory = host_memory()
        if self.engine.on_gpu or memory is None:
            return
        need = embedding_nbytes(sizes(read_gguf(self.engine.path)), self.longest)
        if need > memory.free:
            there = f"{format_nbytes(need)}, {format_nbytes(memory.free)} are free"
            raise BorealisError(
                f"{self.engine.path}: embeddings need {there}; load the model with a smaller context or fewer answers "
                "at once"
            )

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._context is not None:
            llama.llama_free(self._context)
        self._context = None

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """The embedding of one text, float32 [n_embd], of length 1."""
        if not 0 < len(ids) <= self.longest:
            raise InvalidInput(f"a text of {len(ids)} tokens; 1 to {self.longest} can be embedded")
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        starts = range(0, len(ids), EMBED_BATCH)
        total = np.sum([self._sum(ids[start : start + EMBED_BATCH]) for start in starts], axis=0)
        return (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)

    def _sum(self, ids: Sequence[int]) -> np.ndarray:
        """The sum of the hidden states of the next tokens, float64 [n_embd]."""
        clear_errors()
        tokens = (llama.llama_token * len(ids))(*ids)  # the batch points into it
        if status := llama.llama_decode(self._context, llama.llama_batch_get_one(tokens, len(ids))):
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{error_clause()})")
        found: Any = llama.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(found, (len(ids), self.engine.n_embd)).sum(axis=0, dtype=np.float64)
