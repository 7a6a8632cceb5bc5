"""Gemma 3 text models in miniature whose logits say whether a GGUF computes what the checkpoint does.

Each has its size's relations: how many heads share a key, whether rows of `hidden` fit blocks of 256, the stretch of
the global layers, 27b's 62 layers, at which llama.cpp takes hidden/heads for the attention's scale.
Windows are tiny, so that a prompt of a hundred tokens goes past them several times, and each has a global layer.
"""

from dataclasses import dataclass, replace
from typing import Any

from .checkpoints import LAYOUTS, N_NANO, PLAIN, V5_ROPE, Miniature, config, image_token, pattern, wrapped

WINDOW = 16
LINEAR = {"rope_type": "linear", "factor": 8.0}
V4, V5 = "v4", "v5"


@dataclass(frozen=True)
class Size:
    """`width` is hidden_size; `scalar` is query_pre_attn_scalar. `stretched`: the global layers' positions are divided
    by 8."""

    name: str
    layers: int
    width: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    scalar: int
    sees: bool = True
    stretched: bool = True


SIZES = (
    Size("270m", 7, 160, 512, 4, 1, 64, 64, sees=False, stretched=False),
    Size("1b", 12, 288, 512, 4, 1, 64, 64, sees=False, stretched=False),
    Size("4b", 8, 512, 512, 8, 4, 32, 32),
    Size("12b", 13, 256, 512, 16, 8, 32, 32),
    Size("27b", 62, 256, 256, 4, 2, 48, 64),
    Size("27b-heads", 62, 336, 64, 2, 1, 128, 168),
)
"""As in the real ones, heads × head_dim is never hidden. 27b: hidden/heads is 64, head_dim 48; the last has the real
one's heads of 128 and its query_pre_attn_scalar of 168, but fewer of them, so that few rows fit a block."""


def miniature(size: Size, dialect: str) -> Miniature:
    """The checkpoint of `size`, in the configuration's dialect of transformers 4 or 5: the same weights in both."""
    text = config(
        hidden_size=size.width,
        intermediate_size=size.ff,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        query_pre_attn_scalar=size.scalar,
        sliding_window=WINDOW,
        vocab_size=N_NANO + 64 * size.sees,
        **(v4 if dialect == V4 else v5)(size),
    )
    plain = Miniature(f"logits-{size.name}", text)
    if not size.sees:
        return plain
    whole = wrapped(text, bos_token_id=2, eos_token_id=1)
    wrap, vision = WRAPS[dialect]
    return replace(plain, config=whole, tokenizer=image_token, wrap=wrap, vision=vision)


WRAPS = {
    V4: (("language_model.model.", "language_model.lm_head"), PLAIN),
    V5: (("model.language_model.", "lm_head"), LAYOUTS[0]),
}


def v4(size: Size) -> dict[str, Any]:
    return {
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": LINEAR if size.stretched else None,
    }


def v5(size: Size) -> dict[str, Any]:
    full = {"rope_type": "default", "rope_theta": 1e6}
    rope = V5_ROPE if size.stretched else V5_ROPE | {"full_attention": full}
    return {"layer_types": pattern(size.layers), "rope_parameters": rope}
