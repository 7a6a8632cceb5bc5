"""Converts Qwen 2 and 2.5: Llama's tensors with biases for Q, K and V, and without permuting rows."""

from dataclasses import replace

from ...checkpoint.folder import Checkpoint
from ..architecture import TextModel
from ..rows import map_tensors
from ..tied_embeddings import without_tied_head
from ..tokenizers.llama_tokenizer import vocabulary_kv
from .llama import ATTENTION_BIAS, ROWS
from .plain_decoder import Defaults, decoder_keys, read_decoder, warn_of_window

ARCHITECTURE = "qwen2"
DEFAULTS = Defaults(vocabulary=151936, feed_forward=22016, kv_heads=32, context=32768)
QWEN2_ROWS = tuple(replace(row, order=None) for row in (*ROWS, *ATTENTION_BIAS[:3]))


def read_text(checkpoint: Checkpoint) -> TextModel:
    """Reads a Qwen 2. Raises InvalidInput if its files contradict each other."""
    where, config = str(checkpoint.path / "config.json"), checkpoint.config
    decoder = read_decoder(where, config, DEFAULTS)
    if config.get("use_sliding_window"):
        warn_of_window(where, config, 4096, decoder.context)
    tensors = map_tensors(
        str(checkpoint.path),
        without_tied_head(checkpoint),
        QWEN2_ROWS,
        blocks=decoder.layers,
        sizes=decoder.sizes(),
        plain_name=str,
    )
    keys = decoder_keys(ARCHITECTURE, decoder, head_dim=config.get("head_dim") is not None)
    return TextModel(ARCHITECTURE, tensors, keys, vocabulary_kv(checkpoint, decoder.vocabulary))
