"""Converts BLOOM models, such as NorBLOOM. llama.cpp computes the ALiBi slopes itself, so no key stores them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checkpoint.folder import Checkpoint
from ...checkpoint.types import KV
from ...errors import InvalidInput
from ..architecture import TextModel
from ..config_fields import integer, number, only
from ..rows import Row, RowOrder, map_tensors
from ..tied_embeddings import without_tied_head
from ..tokenizers.llama_tokenizer import vocabulary_kv
from .plain_decoder import F32, U32

log = logging.getLogger("borealis_gguf")

ARCHITECTURE = "bloom"
TRAINED_CONTEXT = 2048
PREFIX = "transformer."

QKV = RowOrder(("heads", "q, k and v", "head_dim"), (1, 0, 2))
"""The checkpoint stores q, k and v head by head; llama.cpp stores all of q, then all of k, then all of v."""


def _pair(source: str, target: str, shape: tuple[str, ...], order: RowOrder | None = None) -> tuple[Row, Row]:
    """Returns the rows of a weight and its bias."""
    weight = Row(f"{source}.weight", f"{target}.weight", shape, order=order)
    return weight, Row(f"{source}.bias", f"{target}.bias", shape[:1], order=order)


ROWS = (
    Row("word_embeddings.weight", "token_embd.weight", ("vocabulary", "hidden"), cut=True),
    *_pair("word_embeddings_layernorm", "token_embd_norm", ("hidden",)),
    *_pair("ln_f", "output_norm", ("hidden",)),
    Row("lm_head.weight", "output.weight", ("vocabulary", "hidden"), required=False, cut=True),
    *_pair("h.{bid}.input_layernorm", "blk.{bid}.attn_norm", ("hidden",)),
    *_pair("h.{bid}.self_attention.query_key_value", "blk.{bid}.attn_qkv", ("3 × hidden", "hidden"), QKV),
    *_pair("h.{bid}.self_attention.dense", "blk.{bid}.attn_output", ("hidden", "hidden")),
    *_pair("h.{bid}.post_attention_layernorm", "blk.{bid}.ffn_norm", ("hidden",)),
    *_pair("h.{bid}.mlp.dense_h_to_4h", "blk.{bid}.ffn_up", ("feed-forward", "hidden")),
    *_pair("h.{bid}.mlp.dense_4h_to_h", "blk.{bid}.ffn_down", ("hidden", "feed-forward")),
)


@dataclass(frozen=True, slots=True)
class BloomConfig:
    """The validated config.json."""

    layers: int
    hidden: int
    heads: int
    context: int
    vocabulary: int
    eps: float

    def sizes(self) -> dict[str, int]:
        """Returns the lengths of the axes that ROWS name."""
        return {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "feed-forward": 4 * self.hidden,
            "heads": self.heads,
            "q, k and v": 3,
            "head_dim": self.hidden // self.heads,
            "3 × hidden": 3 * self.hidden,
        }


def read_text(checkpoint: Checkpoint) -> TextModel:
    """Reads a BLOOM. Raises InvalidInput if its files contradict each other."""
    config = read_config(str(checkpoint.path / "config.json"), checkpoint.config)
    prefix = PREFIX * any(name.startswith(PREFIX) for name in checkpoint.tensors)
    tensors = map_tensors(
        str(checkpoint.path),
        without_tied_head(checkpoint),
        ROWS,
        blocks=config.layers,
        sizes=config.sizes(),
        plain_name=lambda name: name.removeprefix(prefix),
    )
    return TextModel(ARCHITECTURE, tensors, keys(config), vocabulary_kv(checkpoint, config.vocabulary))


def read_config(where: str, config: Mapping[str, Any]) -> BloomConfig:
    """Reads config.json, with newer and older names of fields (n_embed, num_attention_heads)."""
    only(where, config, "apply_residual_connection_post_layernorm", False)
    hidden = integer(where, config, _present_name(config, "hidden_size", "n_embed"), 64)
    heads = integer(where, config, _present_name(config, "n_head", "num_attention_heads"), 8)
    if hidden % heads:
        raise InvalidInput(f"{where}: {heads} heads cannot share {hidden} columns; is config.json damaged?")
    length = _present_name(config, "seq_length", "max_position_embeddings", "n_positions")
    if length not in config:
        log.warning("%s: no seq_length; a context of %d, as BLOOM's, is written", where, TRAINED_CONTEXT)
    return BloomConfig(
        layers=integer(where, config, _present_name(config, "n_layer", "num_hidden_layers"), 2),
        hidden=hidden,
        heads=heads,
        context=integer(where, config, length, TRAINED_CONTEXT),
        vocabulary=integer(where, config, "vocab_size", 250880),
        eps=number(where, config, "layer_norm_epsilon", 1e-5),
    )


def _present_name(config: Mapping[str, Any], *names: str) -> str:
    return next((name for name in names if config.get(name) is not None), names[0])


def keys(config: BloomConfig) -> tuple[KV, ...]:
    """Returns the architecture's keys, in the order llama.cpp's converter writes them."""
    return (
        KV("bloom.context_length", U32, config.context),
        KV("bloom.embedding_length", U32, config.hidden),
        KV("bloom.feed_forward_length", U32, 4 * config.hidden),
        KV("bloom.block_count", U32, config.layers),
        KV("bloom.attention.head_count", U32, config.heads),
        KV("bloom.attention.head_count_kv", U32, config.heads),
        KV("bloom.attention.layer_norm_epsilon", F32, config.eps),
        KV("general.file_type", U32, 0),
    )
