"""Reads the config.json fields that Llama, Mistral and Qwen 2 share, and writes their metadata keys."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.types import KV
from ...errors import InvalidInput
from ..config_fields import integer, number, only
from .rope_scaling import Scaling, read_rope, scaling_keys

log = logging.getLogger("borealis_gguf")

U32, F32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32


@dataclass(frozen=True, slots=True)
class Defaults:
    """transformers' defaults for missing fields of config.json. `kv_heads` None means as many as heads."""

    vocabulary: int = 32000
    hidden: int = 4096
    feed_forward: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int | None = None
    context: int = 2048


@dataclass(frozen=True, slots=True)
class Decoder:
    """The validated config.json of a decoder."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int
    eps: float
    theta: float
    scaling: Scaling

    def sizes(self) -> dict[str, int]:
        """Returns the lengths of the axes that rows name."""
        return {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "feed-forward": self.feed_forward,
            "heads": self.heads,
            "kv heads": self.kv_heads,
            "halves": 2,
            "half head": self.head_dim // 2,
            "heads × head_dim": self.heads * self.head_dim,
            "kv heads × head_dim": self.kv_heads * self.head_dim,
        }


def read_decoder(where: str, config: Mapping[str, Any], defaults: Defaults) -> Decoder:
    """Reads config.json. Raises InvalidInput for values out of range, and for settings that llama.cpp ignores."""
    only(where, config, "hidden_act", "silu")
    hidden = integer(where, config, "hidden_size", defaults.hidden)
    heads = integer(where, config, "num_attention_heads", defaults.heads)
    # a null in config.json means as many as heads for every architecture
    assumed = None if "num_key_value_heads" in config else defaults.kv_heads
    kv_heads = _optional(where, config, "num_key_value_heads", assumed or heads)
    head_dim = _optional(where, config, "head_dim", max(1, hidden // heads))
    if heads % kv_heads:
        raise InvalidInput(f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    if head_dim % 2:
        raise InvalidInput(f"{where}: heads of {head_dim} cannot be turned in pairs; is config.json damaged?")
    theta, scaling = read_rope(where, config, 10000.0)
    return Decoder(
        layers=integer(where, config, "num_hidden_layers", defaults.layers),
        hidden=hidden,
        feed_forward=integer(where, config, "intermediate_size", defaults.feed_forward),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=integer(where, config, "max_position_embeddings", defaults.context),
        vocabulary=integer(where, config, "vocab_size", defaults.vocabulary),
        eps=number(where, config, "rms_norm_eps", 1e-6),
        theta=theta,
        scaling=scaling,
    )


def _optional(where: str, config: Mapping[str, Any], key: str, default: int) -> int:
    """Reads an integer; null means `default`."""
    return default if config.get(key) is None else integer(where, config, key, default)


def decoder_keys(architecture: str, decoder: Decoder, *, head_dim: bool = True) -> tuple[KV, ...]:
    """Returns the keys in the order llama.cpp's converter writes them; some architectures omit `head_dim`."""
    entries = [
        KV(f"{architecture}.block_count", U32, decoder.layers),
        KV(f"{architecture}.context_length", U32, decoder.context),
        KV(f"{architecture}.embedding_length", U32, decoder.hidden),
        KV(f"{architecture}.feed_forward_length", U32, decoder.feed_forward),
        KV(f"{architecture}.attention.head_count", U32, decoder.heads),
        KV(f"{architecture}.attention.head_count_kv", U32, decoder.kv_heads),
        *scaling_keys(architecture, decoder.scaling),
        KV(f"{architecture}.rope.freq_base", F32, decoder.theta),
        KV(f"{architecture}.attention.layer_norm_rms_epsilon", F32, decoder.eps),
    ]
    if head_dim:
        entries += [KV(f"{architecture}.attention.{kind}_length", U32, decoder.head_dim) for kind in ("key", "value")]
    return (*entries, KV("general.file_type", U32, 0))


def warn_of_window(where: str, config: Mapping[str, Any], default: int | None, context: int) -> None:
    """Warns of a sliding window: these architectures have no key for it, so llama.cpp attends to the whole context."""
    window = config.get("sliding_window", default)
    if window is None or context <= (window := integer(where, {"sliding_window": window}, "sliding_window", 1)):
        return
    log.warning(
        "%s: sliding_window is %d, but this architecture has no window in llama.cpp: texts longer than that give other "
        "results than the checkpoint; run the GGUF with a context of at most %d tokens",
        where,
        window,
        window,
    )
