"""Converts Gemma 3 text models, such as Borealis: 270m, 1b, and the text model of 4b, 12b and 27b."""

from gguf.constants import GGUFValueType

from ...checkpoint.folder import Checkpoint
from ...checkpoint.types import KV
from ..architecture import TextModel
from ..rows import Row, map_tensors
from ..tied_embeddings import without_tied_head
from ..tokenizers.sentencepiece_vocabulary import read_tokenizer, tokenizer_kv
from . import siglip
from .gemma3_config import Gemma3Config, read_config
from .rope_scaling import scaling_keys

ARCHITECTURE = "gemma3"

HEAD = ("hidden",)
ROWS = (
    Row("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"), cut=True),
    Row("model.norm.weight", "output_norm.weight", HEAD, shift=1.0),
    Row("lm_head.weight", "output.weight", ("vocabulary", "hidden"), required=False, cut=True),
    Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", HEAD, shift=1.0),
    Row("model.layers.{bid}.self_attn.q_proj.weight", "blk.{bid}.attn_q.weight", ("heads × head_dim", "hidden")),
    Row("model.layers.{bid}.self_attn.k_proj.weight", "blk.{bid}.attn_k.weight", ("kv heads × head_dim", "hidden")),
    Row("model.layers.{bid}.self_attn.v_proj.weight", "blk.{bid}.attn_v.weight", ("kv heads × head_dim", "hidden")),
    Row("model.layers.{bid}.self_attn.o_proj.weight", "blk.{bid}.attn_output.weight", ("hidden", "heads × head_dim")),
    Row("model.layers.{bid}.self_attn.q_norm.weight", "blk.{bid}.attn_q_norm.weight", ("head_dim",), shift=1.0),
    Row("model.layers.{bid}.self_attn.k_norm.weight", "blk.{bid}.attn_k_norm.weight", ("head_dim",), shift=1.0),
    Row("model.layers.{bid}.self_attn.rotary_emb.inv_freq", "", required=False),
    Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.post_attention_norm.weight", HEAD, shift=1.0),
    Row("model.layers.{bid}.pre_feedforward_layernorm.weight", "blk.{bid}.ffn_norm.weight", HEAD, shift=1.0),
    Row("model.layers.{bid}.post_feedforward_layernorm.weight", "blk.{bid}.post_ffw_norm.weight", HEAD, shift=1.0),
    Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight", ("feed-forward", "hidden")),
    Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight", ("feed-forward", "hidden")),
    Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight", ("hidden", "feed-forward")),
)


def read_text(checkpoint: Checkpoint) -> TextModel:
    """Reads the text model of a Gemma 3 checkpoint.

    Raises InvalidInput if tensors, configuration and tokenizer contradict each other, or if llama.cpp would compute
    something else.
    """
    where = str(checkpoint.path / "config.json")
    config = read_config(where, checkpoint.config)
    tensors = map_tensors(
        str(checkpoint.path),
        without_tied_head(checkpoint),
        ROWS,
        blocks=config.layers,
        sizes=config.sizes(),
        plain_name=plain_name,
    )
    tokenizer = read_tokenizer(checkpoint, config.vocabulary)
    tokens = tokenizer_kv(tokenizer, checkpoint.config)
    return TextModel(
        ARCHITECTURE, tensors, keys(config), (*tokens, KV("tokenizer.ggml.add_space_prefix", GGUFValueType.BOOL, False))
    )


def plain_name(name: str) -> str | None:
    """Turns a tensor name of any known layout into the spelling of ROWS; None for the vision tower.

    Versions of transformers have written `model.…`, `language_model.model.…`, `model.language_model.…` and
    `model.language_model.model.…`, and the head as `lm_head` or `language_model.lm_head`.
    """
    if siglip.plain_name(name):
        return None
    inner = siglip.WRAPPERS.sub("", name, count=1)
    return inner if inner.startswith("lm_head.") else f"model.{inner}"


def keys(config: Gemma3Config) -> tuple[KV, ...]:
    """Returns the architecture's keys, in the order llama.cpp's converter writes them."""
    u32, f32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
    rope = config.rope
    entries: list[KV] = [
        _kv("block_count", u32, config.layers),
        _kv("context_length", u32, config.context),
        _kv("embedding_length", u32, config.hidden),
        _kv("feed_forward_length", u32, config.feed_forward),
        _kv("attention.head_count", u32, config.heads),
        _kv("attention.head_count_kv", u32, config.kv_heads),
    ]
    entries += scaling_keys(ARCHITECTURE, rope.scaling)
    entries += [
        _kv("rope.freq_base", f32, rope.theta),
        _kv("rope.freq_base_swa", f32, rope.local_theta),
        _kv("attention.layer_norm_rms_epsilon", f32, config.eps),
        _kv("attention.key_length", u32, config.head_dim),
        _kv("attention.value_length", u32, config.head_dim),
        KV("general.file_type", u32, 0),
    ]
    if config.softcap:
        entries.append(_kv("final_logit_softcapping", f32, config.softcap))
    if config.window:
        entries.append(_kv("attention.sliding_window", u32, config.window))
    return tuple(entries)


def _kv(key: str, type: GGUFValueType, value: int | float) -> KV:
    return KV(f"{ARCHITECTURE}.{key}", type, value)
