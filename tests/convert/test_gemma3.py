"""Gemma 3's configuration and tensor names: both dialects, and refusals of what the runtime would get wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import Checkpoint, open_checkpoint
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import Slice
from borealis_gguf.convert import ARCHITECTURES, describe
from borealis_gguf.convert.architectures import gemma3
from borealis_gguf.convert.architectures.gemma3_config import read_config
from borealis_gguf.convert.rows import Row, map_tensors
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import NANO, Miniature, config, pattern, text_shapes

SIZES = {  # layers, hidden, feed-forward, heads, key-value heads, head_dim, context, window, vocabulary
    "270m": (18, 640, 2048, 4, 1, 256, 32768, 512, 262144),
    "1b": (26, 1152, 6912, 4, 1, 256, 32768, 512, 262144),
    "4b": (34, 2560, 10240, 8, 4, 256, 131072, 1024, 262208),
    "12b": (48, 3840, 15360, 16, 8, 256, 131072, 1024, 262208),
    "27b": (62, 5376, 21504, 32, 16, 128, 131072, 1024, 262208),
}
NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "vocab_size",
)


def slices(text: Mapping[str, Any], prefix: str = "model.") -> dict[str, Slice]:
    return {prefix + n: Slice(Path("model.safetensors"), 0, T.BF16, s) for n, s in text_shapes(dict(text)).items()}


def map_gemma3(tensors: dict[str, Slice], text: Mapping[str, Any]) -> list[str]:
    read = read_config("config.json", text)
    rows = gemma3.ROWS
    mapped = map_tensors("here", tensors, rows, blocks=read.layers, sizes=read.sizes(), plain_name=gemma3.plain_name)
    return [t.name for t in mapped]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model."])
def test_borealis_sizes(size: str, prefix: str) -> None:
    text = config(**dict(zip(NAMES, SIZES[size], strict=True)), query_pre_attn_scalar=168 if size == "27b" else 256)
    names = map_gemma3(slices(text, prefix), text)
    assert len(names) == 2 + 13 * SIZES[size][0] == len(set(names))
    found = {kv.key.removeprefix("gemma3."): kv.value for kv in gemma3.keys(read_config("config.json", text))}
    keys = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
    keys += ("attention.key_length", "context_length", "attention.sliding_window")
    assert tuple(found[key] for key in keys) == SIZES[size][:8]


def test_both_dialects_mean_the_same() -> None:
    old = config(rope_scaling={"rope_type": "linear", "factor": 8}, rope_theta=5e5, rope_local_base_freq=2e4)
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    new = config(rope_parameters={"full_attention": full, "sliding_attention": {"rope_theta": 2e4}})
    assert read_config("x", old) == read_config("x", new)
    legacy = config(rope_scaling={"type": "linear", "factor": 8}, rope_theta=5e5, rope_local_base_freq=2e4)
    assert read_config("x", legacy) == read_config("x", new)


def test_full_attention_everywhere_writes_no_window() -> None:
    """Purposeful difference: llama.cpp's converter writes the window unless sliding_window_pattern says 1."""
    read = read_config("x", config(layer_types=["full_attention"], sliding_window=None))
    assert read.window is None
    assert "gemma3.attention.sliding_window" not in [kv.key for kv in gemma3.keys(read)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": "6"}, "num_hidden_layers is '6'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"vocab_size": 1 << 40}, "vocab_size is 1099511627776"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}, "silently wrong"),
        ({"layer_types": pattern(7)[::-1], "num_hidden_layers": 7}, "silently wrong"),
        ({"layer_types": ["sliding_attention"]} | {"num_hidden_layers": 2}, "has 1 entries, but there are 2 layers"),
        ({"layer_types": "sliding_attention"}, "layer_types is no list, but there are 1 layers"),
        ({"sliding_window_pattern": 4, "num_hidden_layers": 8}, "silently wrong"),
        ({"query_pre_attn_scalar": 168}, "query_pre_attn_scalar is 168"),
        ({"query_pre_attn_scalar": None}, "query_pre_attn_scalar is 256"),
        ({"num_hidden_layers": 62}, "query_pre_attn_scalar is 32"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"final_logit_softcapping": "x"}, "final_logit_softcapping"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs a factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor is -2.0"),
        ({"rope_scaling": 8}, "rope_scaling is 8"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "full_attention and sliding_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"text_config": []}, "text_config"),
    ],
    ids=str,
)
def test_refused_configurations(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_config("config.json", config(**changes))
    assert words in str(caught.value) and str(caught.value).startswith("config.json") and "\n" not in str(caught.value)


def one_more(tensors: dict[str, Slice], name: str, shape: tuple[int, ...] = (64,)) -> dict[str, Slice]:
    return tensors | {name: Slice(Path("model.safetensors"), 0, T.BF16, shape)}


TEXT = config()
GOOD = slices(TEXT)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (one_more(GOOD, "model.layers.1.input_layernorm.weight"), "unknown to this architecture: model.layers.1.input"),
        (one_more(GOOD, "model.layers.0.mlp.up_proj.weight.extra"), "up_proj.weight.extra"),
        (one_more(GOOD, "xmodel.norm.weight"), "xmodel.norm.weight"),
        (one_more(GOOD, "model.layers.00.input_layernorm.weight"), "layers.00"),
        (one_more(GOOD, "model.layers.0.self_attn.q_proj.bias"), "q_proj.bias"),
        (one_more(GOOD, "evil\nname"), r"evil\nname"),
        (one_more(GOOD, "language_model.model.norm.weight"), "present twice"),
        ({n: t for n, t in GOOD.items() if "o_proj" not in n}, "missing: model.layers.0.self_attn.o_proj.weight"),
        (one_more(GOOD, "model.norm.weight", (65,)), "its shape is [65], but config.json makes it [64]"),
        (one_more(GOOD, "model.norm.weight", ()), "its shape is []"),
        (one_more(GOOD, "model.norm.weight", (64, 1)), "its shape is [64, 1]"),
        (one_more(GOOD, "model.embed_tokens.weight", (4095, 64)), "has 4095 rows, but vocab_size is 4096"),
        (one_more(GOOD, "model.layers.0.self_attn.k_proj.weight", (128, 64)), "(kv heads × head_dim × hidden)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refused_tensors(tensors: dict[str, Slice], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        map_gemma3(tensors, TEXT)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_many_faults_are_one_short_line() -> None:
    with pytest.raises(InvalidInput, match=r"layers\.1\..* and 5 more") as caught:
        map_gemma3(GOOD, TEXT | {"num_hidden_layers": 2})
    assert len(str(caught.value)) < 800


def test_a_billion_layers_are_refused_before_names_are_made() -> None:
    with pytest.raises(InvalidInput, match="1000000000 layers"):
        map_gemma3(GOOD, TEXT | {"num_hidden_layers": 10**9, "layer_types": None})


def test_known_and_left_out() -> None:
    tensors = one_more(GOOD, "model.layers.0.self_attn.rotary_emb.inv_freq", (16,))
    for name in ("vision_tower.x", "model.vision_tower.x", "multi_modal_projector.y", "model.multi_modal_projector.y"):
        tensors = one_more(tensors, name)
    assert map_gemma3(tensors, TEXT) == map_gemma3(GOOD, TEXT)


def test_padded_embeddings_are_cut() -> None:
    rows = (Row("a", "b", ("vocabulary", "hidden"), cut=True),)
    tensors = {"a": Slice(Path("x"), 0, T.F16, (70, 8))}
    sizes = {"vocabulary": 64, "hidden": 8}
    (tensor,) = map_tensors("here", tensors, rows, blocks=1, sizes=sizes, plain_name=lambda n: n)
    assert tensor.shape == (64, 8) and tensor.source.slice.shape == (70, 8)


def test_untied_without_a_head(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(Miniature("x", config(tie_word_embeddings=False)).write(tmp_path))
    with pytest.raises(InvalidInput, match="tie_word_embeddings is false, but there is no lm_head"):
        describe(checkpoint, "bf16")


def test_unknown_architecture_names_the_known_ones_and_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    for names in (["EvilForCausalLM"], [], None, [3], "Gemma3ForCausalLM"):
        settings = {"architectures": names, "auto_map": {"AutoConfig": "evil.Config"}}
        with pytest.raises(InvalidInput, match=", ".join(ARCHITECTURES)):
            describe(Checkpoint(tmp_path, None, settings, {}), "bf16")


def test_unknown_outtype() -> None:
    with pytest.raises(InvalidInput, match=r"--outtype q4_0: .* f32, f16, bf16, q8_0, auto"):
        describe(open_checkpoint(NANO), "q4_0")
