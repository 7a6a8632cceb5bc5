"""Converts Llama and Mistral models, such as NorMistral.

RoPE rotates pairs of a head's rows in Q and K: (0, half), (1, half + 1), … in these checkpoints, neighbouring rows in
llama.cpp. So the rows of Q and K are permuted within each head.
"""

from ...checkpoint.folder import Checkpoint
from ...checkpoint.types import KV
from ..architecture import TextModel
from ..rows import Row, RowOrder, map_tensors
from ..tied_embeddings import without_tied_head
from ..tokenizers.llama_tokenizer import vocabulary_kv
from .plain_decoder import U32, Decoder, Defaults, decoder_keys, read_decoder, warn_of_window

ARCHITECTURE = "llama"
LLAMA = Defaults()
MISTRAL = Defaults(feed_forward=14336, kv_heads=8, context=131072)
MISTRAL_WINDOW = 4096

Q_SHAPE, KV_SHAPE = ("heads × head_dim", "hidden"), ("kv heads × head_dim", "hidden")
Q = RowOrder(("heads", "halves", "half head"), (0, 2, 1))
K = RowOrder(("kv heads", "halves", "half head"), (0, 2, 1))
ROWS = (
    Row("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"), cut=True),
    Row("model.norm.weight", "output_norm.weight", ("hidden",)),
    Row("lm_head.weight", "output.weight", ("vocabulary", "hidden"), required=False, cut=True),
    Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", ("hidden",)),
    Row("model.layers.{bid}.self_attn.q_proj.weight", "blk.{bid}.attn_q.weight", Q_SHAPE, order=Q),
    Row("model.layers.{bid}.self_attn.k_proj.weight", "blk.{bid}.attn_k.weight", KV_SHAPE, order=K),
    Row("model.layers.{bid}.self_attn.v_proj.weight", "blk.{bid}.attn_v.weight", KV_SHAPE),
    Row("model.layers.{bid}.self_attn.o_proj.weight", "blk.{bid}.attn_output.weight", Q_SHAPE[::-1]),
    Row("model.layers.{bid}.self_attn.rotary_emb.inv_freq", "", ("half head",), required=False),
    Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight", ("hidden",)),
    Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight", ("feed-forward", "hidden")),
    Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight", ("feed-forward", "hidden")),
    Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight", ("hidden", "feed-forward")),
)
ATTENTION_BIAS = (
    Row("model.layers.{bid}.self_attn.q_proj.bias", "blk.{bid}.attn_q.bias", Q_SHAPE[:1], order=Q),
    Row("model.layers.{bid}.self_attn.k_proj.bias", "blk.{bid}.attn_k.bias", KV_SHAPE[:1], order=K),
    Row("model.layers.{bid}.self_attn.v_proj.bias", "blk.{bid}.attn_v.bias", KV_SHAPE[:1]),
    Row("model.layers.{bid}.self_attn.o_proj.bias", "blk.{bid}.attn_output.bias", ("hidden",)),
)
FEED_FORWARD_BIAS = (
    Row("model.layers.{bid}.mlp.gate_proj.bias", "blk.{bid}.ffn_gate.bias", ("feed-forward",)),
    Row("model.layers.{bid}.mlp.up_proj.bias", "blk.{bid}.ffn_up.bias", ("feed-forward",)),
    Row("model.layers.{bid}.mlp.down_proj.bias", "blk.{bid}.ffn_down.bias", ("hidden",)),
)
"""Biases of a Llama whose config.json sets `attention_bias` or `mlp_bias`; Mistral has none."""


def read_llama(checkpoint: Checkpoint) -> TextModel:
    """Reads a Llama. Raises InvalidInput if its files contradict each other."""
    where = str(checkpoint.path / "config.json")
    biases = ATTENTION_BIAS * bool(checkpoint.config.get("attention_bias"))
    biases += FEED_FORWARD_BIAS * bool(checkpoint.config.get("mlp_bias"))
    return _read(checkpoint, read_decoder(where, checkpoint.config, LLAMA), (*ROWS, *biases))


def read_mistral(checkpoint: Checkpoint) -> TextModel:
    """Reads a Mistral, and warns of a sliding window, which llama.cpp ignores."""
    where = str(checkpoint.path / "config.json")
    decoder = read_decoder(where, checkpoint.config, MISTRAL)
    warn_of_window(where, checkpoint.config, MISTRAL_WINDOW, decoder.context)
    return _read(checkpoint, decoder, ROWS)


def _read(checkpoint: Checkpoint, decoder: Decoder, rows: tuple[Row, ...]) -> TextModel:
    tensors = map_tensors(
        str(checkpoint.path),
        without_tied_head(checkpoint),
        rows,
        blocks=decoder.layers,
        sizes=decoder.sizes(),
        plain_name=str,
    )
    return TextModel(ARCHITECTURE, tensors, keys(decoder), vocabulary_kv(checkpoint, decoder.vocabulary))


def keys(decoder: Decoder) -> tuple[KV, ...]:
    """Returns the architecture's keys, in the order llama.cpp's converter writes them."""
    return (
        *decoder_keys(ARCHITECTURE, decoder),
        KV(f"{ARCHITECTURE}.vocab_size", U32, decoder.vocabulary),
        KV(f"{ARCHITECTURE}.rope.dimension_count", U32, decoder.head_dim),
    )
