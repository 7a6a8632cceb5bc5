"""Sizes that the engine, the slots, the memory estimate and the placement must agree on."""

BATCH = 512
"""Most tokens of one computation (n_batch and n_ubatch); an image must fit in one."""

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ: the most slots of one context."""

DEFAULT_CONTEXT = 8192
"""Tokens of a context, unless the model has fewer or the caller says otherwise."""

CELL_MULTIPLE = 256
"""llama.cpp rounds contexts and sliding windows up to a multiple of this many KV cache cells."""

MAX_CHECKPOINT_BYTES = 256 << 20
"""Most memory for checkpoints (copies of sliding windows) of all slots; one of Borealis 4b takes up to 125 MB."""

MAX_CHECKPOINTS = 8
"""Most checkpoints of one slot; the oldest is dropped first."""


def rounded_cells(tokens: int) -> int:
    """KV cache cells that llama.cpp allocates for `tokens`."""
    return -(-tokens // CELL_MULTIPLE) * CELL_MULTIPLE
