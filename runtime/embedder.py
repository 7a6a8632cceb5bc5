"""Texts as vectors: the mean of what the model makes of their tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp as llama
import numpy as np

from ..errors import BorealisError, InvalidInput
from .vocabulary import forget, reason

if TYPE_CHECKING:
    from .engine import Engine

LONGEST = 512
"""Tokens of a text are averaged within one computation, which takes memory for all of them."""


class Embedder:
    """A second context of the engine's model; must be closed before the engine. For the engine's thread."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.longest = min(LONGEST, engine.n_context)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.longest
        params.n_threads = params.n_threads_batch = engine.threads
        params.embeddings, params.swa_full = True, False
        params.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
        forget()
        self._context: Any = llama.llama_init_from_model(engine.model, params)
        if self._context is None:
            raise BorealisError(f"{engine.path}: no room for computing embeddings{reason()}")

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
        forget()
        held = (llama.llama_token * len(ids))(*ids)  # the batch points into it
        if status := llama.llama_decode(self._context, llama.llama_batch_get_one(held, len(ids))):
            raise BorealisError(f"llama.cpp stopped while reading tokens (status {status}{reason()})")
        found: Any = llama.llama_get_embeddings_seq(self._context, 0)
        vector = np.array(np.ctypeslib.as_array(found, (self.engine.n_embd,)))
        return vector / max(float(np.linalg.norm(vector)), 1e-12)
