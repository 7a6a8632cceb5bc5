"""Miniature checkpoints of the other families: Mistral, Llama, BLOOM, Qwen 2."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from borealis_gguf.convert.tokenizers.pre_tokenizer import BLOOM, QWEN2, TEKKEN
from borealis_gguf.convert.tokenizers.sentencepiece_model import read_sentencepiece

from . import sentencepiece_models as sp
from .checkpoints import NANO, Files, Miniature, write_json
from .paths import DATA
from .tiny import bf16, weights

BPE = DATA / "tokenizers" / "bpe.json"
N_BPE = 1463
N_WORDS = 1200
N_SP = 3 + 256 + N_WORDS
CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|> ' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant\\n' }}{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family(Miniature):
    """`shapes` are those of the tensors by name. `pre` is what llama.cpp's converter, which does not know these
    vocabularies, is told their pre type is. `purposeful` are the keys that differ on purpose. `tolerance` is that of
    logits, as a part of the largest: float32 sums of a hundred products, in another order."""

    shapes: Callable[[dict[str, Any]], Shapes] = field(default=lambda config: {})
    pre: str | None = None
    purposeful: tuple[str, ...] = ()
    tolerance: float = 2e-5

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        return {name: (self.dtype, shape, self.bytes(name, shape)) for name, shape in self.shapes(self.config).items()}

    def bytes(self, name: str, shape: tuple[int, ...]) -> bytes:
        """Weights such that attention looks at several tokens, and norms that are about 1."""
        values = weights(sum(name.encode()) * 1000 + len(name), *shape)
        values = values * np.float32(0.5) if len(shape) > 1 else values * np.float32(0.25) + np.float32("norm" in name)
        return {"BF16": bf16, "F16": lambda v: v.astype(np.float16), "F32": lambda v: v}[self.dtype](values).tobytes()


# --- tensors --------------------------------------------------------------------------------------------------------


def llama_shapes(config: dict[str, Any], qkv_bias: bool = False) -> Shapes:
    hidden, ff, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    weight = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ff, hidden),
        "mlp.up_proj": (ff, hidden),
        "mlp.down_proj": (hidden, ff),
    }
    biased = list(weight)[:3] if qkv_bias else list(weight)[:4] * bool(config.get("attention_bias"))
    biased += list(weight)[4:] * bool(config.get("mlp_bias"))
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in weight.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if name in biased:
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def qwen2_shapes(config: dict[str, Any]) -> Shapes:
    return llama_shapes(config, qkv_bias=True)


def bloom_shapes(config: dict[str, Any], prefix: str = "transformer.") -> Shapes:
    n = config["hidden_size"]
    layer = {
        "input_layernorm": (n,),
        "self_attention.query_key_value": (3 * n, n),
        "self_attention.dense": (n, n),
        "post_attention_layernorm": (n,),
        "mlp.dense_h_to_4h": (4 * n, n),
        "mlp.dense_4h_to_h": (n, 4 * n),
    }
    all = {"word_embeddings_layernorm": (n,), "ln_f": (n,)}
    all |= {f"h.{i}.{name}": shape for i in range(config["n_layer"]) for name, shape in layer.items()}
    shapes: Shapes = {f"{prefix}word_embeddings.weight": (config["vocab_size"], n)}
    for name, shape in all.items():
        shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = shape, shape[:1]
    return shapes


# --- tokenizers -----------------------------------------------------------------------------------------------------


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool = False, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


DIGITS = {"type": "Digits", "individual_digits": True}
NORA_NORMALIZER = [
    {"type": "Prepend", "prepend": " "},
    {"type": "NFKC"},
    {"type": "Replace", "pattern": {"String": "\n"}, "content": "\n "},
    {"type": "Replace", "pattern": {"Regex": " *\n"}, "content": "\n"},
]
NORA = [split(TEKKEN), byte_level(), split(".{1,24}")]
BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def bpe_json(
    pre_tokenizer: list[dict[str, Any]],
    normalizer: list[dict[str, Any]] | None = None,
    ignore_merges: bool = False,
    post_processor: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The vocabulary in data/tokenizers, splitting texts in this way."""
    value = json.loads(BPE.read_text(encoding="utf-8"))
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre_tokenizer}
    value["normalizer"] = {"type": "Sequence", "normalizers": normalizer} if normalizer else None
    value["post_processor"] = post_processor
    value["model"]["ignore_merges"] = ignore_merges
    return value


def bpe(value: dict[str, Any], **settings: Any) -> Files:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

    def write(folder: Path) -> None:
        write_json(folder / "tokenizer.json", value)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | names | settings
        write_json(folder / "tokenizer_config.json", {key: v for key, v in config.items() if v is not None})

    return write


def sentencepiece(*files: str, prefix: bool = True, **settings: Any) -> Files:
    """A Llama-like SentencePiece tokenizer with nano-nb-7m's most frequent words, as any of its three files."""

    def write(folder: Path) -> None:
        pieces = llama_pieces()
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        if "tokenizer.model" in files:
            (folder / "tokenizer.model").write_bytes(sp.model(pieces, prefix=prefix))
        if "tokenizer.json" in files:
            write_json(folder / "tokenizer.json", llama_json(pieces, prefix))
        if "tokenizer_config.json" in files:
            config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
            config["added_tokens_decoder"] = {str(t.pop("id")): t for t in llama_added()}
            write_json(folder / "tokenizer_config.json", config | names | settings)

    return write


def llama_pieces() -> list[tuple[str, float, int]]:
    nano = read_sentencepiece(NANO / "tokenizer.model")
    words = [piece for piece, type in zip(nano.pieces, nano.types, strict=True) if type == 1 and "<" not in piece]
    letters = [word for word in words if len(word) == 1]
    words = [word for word in words if len(word) > 1][: N_WORDS - len(letters)]
    start = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    start += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return start + [(word, -float(rank), 1) for rank, word in enumerate([*words, *letters])]


def llama_added() -> list[dict[str, Any]]:
    switches = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": id, "content": text} | switches for id, text in enumerate(("<unk>", "<s>", "</s>"))]


def llama_json(pieces: list[tuple[str, float, int]], prefix: bool) -> dict[str, Any]:
    """What transformers makes of a SentencePiece model: every pair of pieces that makes a piece is a merge."""
    words = {piece: (rank, score) for rank, (piece, score, type) in enumerate(pieces) if type == 1}
    pairs = [(w[:i], w[i:]) for w in words for i in range(1, len(w)) if w[:i] in words and w[i:] in words]
    pairs.sort(key=lambda pair: (-words["".join(pair)][1], words[pair[0]][0], words[pair[1]][0]))
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    decoders += [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": llama_added(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}] * prefix + spaces},
        "pre_tokenizer": None,
        "post_processor": BOS,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: id for id, (piece, _, _) in enumerate(pieces)},
            "merges": [list(pair) for pair in pairs],
        },
    }


# --- configurations -------------------------------------------------------------------------------------------------


def mistral(**changes: Any) -> dict[str, Any]:
    base = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "sliding_window": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": N_SP,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


ALL = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
NORA_TOKENIZER = bpe_json(NORA, NORA_NORMALIZER, ignore_merges=True, post_processor=BOS)
ADD_SPACE = "tokenizer.ggml.add_space_prefix"
TEMPLATE = "tokenizer.chat_template"


def nora(byte_fallback: bool = False, **settings: Any) -> Files:
    """The NORA models' tokenizer, as the 11b's public files define it; the 7b's may say `byte_fallback`."""
    value = json.loads(json.dumps(NORA_TOKENIZER))
    value["model"]["byte_fallback"] = byte_fallback
    return bpe(value, mask_token="<mask>", clean_up_tokenization_spaces=False, **settings)


FAMILIES = (
    Family(
        "normistral-7b-warm-mini",
        mistral(),
        shards=2,
        tokenizer=sentencepiece(*ALL),
        files={
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.3},
            "README.md": "---\nlicense: apache-2.0\n---\n",
        },
        shapes=llama_shapes,
    ),
    Family(
        "normistral-7b-warm-instruct-mini",
        mistral(num_key_value_heads=4, rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        dtype="F16",
        tokenizer=sentencepiece(*ALL, prefix=False, add_prefix_space=False, chat_template=INST),
        shapes=llama_shapes,
    ),
    Family(
        "plain-model-only",
        mistral(num_hidden_layers=1),
        dtype="F32",
        tokenizer=sentencepiece("tokenizer.model", "tokenizer_config.json", prefix=False),
        shapes=llama_shapes,
        purposeful=(ADD_SPACE, "tokenizer.ggml.unknown_token_id"),
    ),
    Family(
        "llama-biased-mini",
        mistral(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            hidden_size=96,
            head_dim=40,
            sliding_window=None,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_scaling={"type": "linear", "factor": 2.0},
            vocab_size=N_SP + 5,
        ),
        tokenizer=sentencepiece(*ALL),
        shapes=llama_shapes,
    ),
    Family(
        "normistral-11b-mini",
        mistral(
            vocab_size=N_BPE + 9, head_dim=32, num_hidden_layers=1, max_position_embeddings=4096, sliding_window=None
        ),
        tokenizer=nora(chat_template=CHATML),
        shapes=llama_shapes,
        pre="tekken",
        purposeful=(TEMPLATE,),
    ),
    Family(
        "normistral-7b-scratch-mini",
        mistral(hidden_size=128, intermediate_size=448, num_attention_heads=8, num_hidden_layers=3),
        dtype="F32",
        shards=2,
        tokenizer=sentencepiece(*ALL, add_prefix_space=True),
        shapes=llama_shapes,
    ),
    Family(
        "normistral-7b-warm-nora",
        mistral(vocab_size=N_BPE),
        shards=2,
        tokenizer=nora(),
        shapes=llama_shapes,
        pre="tekken",
    ),
    Family(
        "normistral-7b-warm-instruct-nora",
        mistral(
            vocab_size=N_BPE + 1,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            sliding_window=4096,
            rope_theta=None,
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
        ),
        dtype="F16",
        tokenizer=nora(byte_fallback=True, chat_template=CHATML),
        shapes=llama_shapes,
        pre="tekken",
        purposeful=(TEMPLATE,),
        files={"generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 6], "pad_token_id": 3}},
    ),
    Family(
        "normistral-7b-scratch-nora",
        mistral(vocab_size=N_BPE + 17, hidden_size=128, num_attention_heads=8, num_hidden_layers=3),
        dtype="F32",
        tokenizer=nora(byte_fallback=True),
        shapes=llama_shapes,
        pre="tekken",
    ),
    Family(
        "norbloom-7b-scratch-nora",
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "hidden_size": 128,
            "n_layer": 3,
            "n_head": 4,
            "layer_norm_epsilon": 1e-5,
            "seq_length": 2048,
            "vocab_size": N_BPE + 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        },
        tokenizer=nora(),
        shapes=bloom_shapes,
        tolerance=5e-4,
        pre="tekken",
    ),
    Family(
        "norbloom-7b-scratch-mini",
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "hidden_size": 96,
            "n_layer": 2,
            "n_head": 6,
            "layer_norm_epsilon": 1e-5,
            "seq_length": 2048,
            "vocab_size": N_BPE + 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        },
        shards=3,
        tokenizer=bpe(bpe_json([split(BLOOM), byte_level()], post_processor=byte_level())),
        shapes=bloom_shapes,
        tolerance=5e-4,  # ggml's GELU is a table in half precision
        pre="bloom",
    ),
    Family(
        "qwen2-mini",
        mistral(
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            sliding_window=None,
            use_sliding_window=False,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            tie_word_embeddings=True,
            vocab_size=N_BPE,
        ),
        tokenizer=bpe(
            bpe_json([split(QWEN2), byte_level()], [{"type": "NFC"}], post_processor=byte_level()), add_bos_token=False
        ),
        shapes=qwen2_shapes,
        pre="qwen2",
    ),
)
"""Those whose entries and bytes llama.cpp's converter must agree with, but for the `purposeful` keys."""

WINDOWED = (
    Family(
        "mistral-window-32",
        mistral(sliding_window=32),
        dtype="F32",
        tokenizer=sentencepiece(*ALL),
        shapes=llama_shapes,
    ),
)
"""Those that llama.cpp's runtime cannot follow past their window."""
