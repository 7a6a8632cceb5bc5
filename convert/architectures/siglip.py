"""Converts the SigLIP vision tower and projector of Gemma 3 4b, 12b and 27b to an mmproj GGUF.

Defaults are those of transformers' SiglipVisionConfig. Image preprocessing is set in preprocessor_config.json or, in
newer checkpoints, processor_config.json; llama.cpp reads mean and deviation from the GGUF and hard-codes the rest.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.strict_json import read_json_object
from ...checkpoint.types import KV, GGMLQuantizationType
from ...errors import InvalidInput
from ...pipeline.plan import Tensor
from ..config_fields import integer, mapping, number, only
from ..outtype import outtypes
from ..rows import Row, map_tensors

ARCHITECTURE = "clip"
DEFAULT_POOL = 4
"""Patches per side that are pooled to one token, llama.cpp's default without a key."""

HIDDEN, TOWER, PROJECTOR = ("hidden",), "vision_tower.vision_model.", "multi_modal_projector."
LAYER = f"{TOWER}encoder.layers.{{bid}}."


def _linear(source: str, target: str, out: str, n: str) -> tuple[Row, Row]:
    return Row(f"{source}.weight", f"{target}.weight", (out, n)), Row(f"{source}.bias", f"{target}.bias", (out,))


def _norm(source: str, target: str) -> tuple[Row, Row]:
    return Row(f"{source}.weight", f"{target}.weight", HIDDEN), Row(f"{source}.bias", f"{target}.bias", HIDDEN)


POOLING_HEAD = (
    *("probe", "attention.in_proj_weight", "attention.in_proj_bias"),
    *(f"{n}.{k}" for n in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2") for k in ("weight", "bias")),
)
"""SigLIP's pooling head, which Gemma 3 does not use, though some checkpoints store it."""

ROWS = (
    Row(f"{TOWER}embeddings.patch_embedding.weight", "v.patch_embd.weight", ("hidden", "channels", "patch", "patch")),
    Row(f"{TOWER}embeddings.patch_embedding.bias", "v.patch_embd.bias", HIDDEN),
    Row(f"{TOWER}embeddings.position_embedding.weight", "v.position_embd.weight", ("patches", "hidden")),
    Row(f"{TOWER}embeddings.position_ids", "", required=False),
    *_norm(f"{LAYER}layer_norm1", "v.blk.{bid}.ln1"),
    *_norm(f"{LAYER}layer_norm2", "v.blk.{bid}.ln2"),
    *_linear(f"{LAYER}self_attn.q_proj", "v.blk.{bid}.attn_q", "hidden", "hidden"),
    *_linear(f"{LAYER}self_attn.k_proj", "v.blk.{bid}.attn_k", "hidden", "hidden"),
    *_linear(f"{LAYER}self_attn.v_proj", "v.blk.{bid}.attn_v", "hidden", "hidden"),
    *_linear(f"{LAYER}self_attn.out_proj", "v.blk.{bid}.attn_out", "hidden", "hidden"),
    *_linear(f"{LAYER}mlp.fc1", "v.blk.{bid}.ffn_up", "feed-forward", "hidden"),
    *_linear(f"{LAYER}mlp.fc2", "v.blk.{bid}.ffn_down", "hidden", "feed-forward"),
    *_norm(f"{TOWER}post_layernorm", "v.post_ln"),
    *(Row(f"{TOWER}head.{name}", "", required=False) for name in POOLING_HEAD),
    # Written as [hidden, text hidden], as in the checkpoint: llama.cpp transposes it.
    Row(f"{PROJECTOR}mm_input_projection_weight", "mm.input_projection.weight", ("hidden", "text hidden")),
    # The projector has Gemma's norm, whose weights are stored minus one; the tower's norms are not.
    Row(f"{PROJECTOR}mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", HIDDEN, shift=1.0),
)

FIXED_TYPES = {
    "v.patch_embd.weight": GGMLQuantizationType.F32,
    "v.position_embd.weight": GGMLQuantizationType.F32,
    "mm.input_projection.weight": GGMLQuantizationType.F16,
}
"""Types that are fixed for every outtype, since llama.cpp's GPU kernels have failed on others."""

WRAPPERS = re.compile(r"(?:model\.|language_model\.)*")
TOWERS = re.compile(r"(?:vision_tower\.vision_model|vision_tower|vision_model)\.")
PROJECTORS = re.compile(r"(?:multi_modal_projector|multimodal_projector)\.")


def plain_name(name: str) -> str | None:
    """Turns a tensor name of any known layout into the spelling of ROWS; None for the text model.

    transformers 4 wrote `vision_tower.vision_model.…`, 4.52 and later have it under `model.`, and 5 leaves out
    `vision_model.`; some tools add `language_model.` in front.
    """
    name = WRAPPERS.sub("", name, count=1)
    for pattern, prefix in ((TOWERS, TOWER), (PROJECTORS, PROJECTOR)):
        if match := pattern.match(name):
            return prefix + name[match.end() :]
    return None


@dataclass(frozen=True, slots=True)
class VisionModel:
    """The vision tower's tensors; `keys` as in `TextModel`, with a placeholder for `general.file_type`."""

    tensors: tuple[Tensor, ...]
    keys: tuple[KV, ...]


@dataclass(frozen=True, slots=True)
class SiglipConfig:
    """The validated vision_config of config.json. `pool` is the number of patches per side that make one token."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    image_size: int
    patch_size: int
    eps: float
    text_hidden: int
    pool: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def sizes(self) -> dict[str, int]:
        """Returns the lengths of the axes that ROWS name."""
        return {
            "hidden": self.hidden,
            "feed-forward": self.feed_forward,
            "channels": 3,
            "patch": self.patch_size,
            "patches": self.patches,
            "text hidden": self.text_hidden,
        }


def read_vision(checkpoint: Checkpoint) -> VisionModel:
    """Reads the vision tower of a Gemma 3 checkpoint.

    Raises InvalidInput without a vision tower, if tensors and configurations contradict each other, or if llama.cpp
    would compute something else.
    """
    where = f"{checkpoint.path / 'config.json'}"
    if not mapping(where, checkpoint.config, "vision_config"):
        raise InvalidInput(f"{where}: no vision_config, so this model cannot see; convert it without an mmproj")
    config = read_config(where, checkpoint.config)
    if not has_vision_tensors(checkpoint):
        raise InvalidInput(
            f"{checkpoint.path}: config.json describes a vision side, but no tensor belongs to one; "
            "take the mmproj of the model this one was made from"
        )
    tensors = map_tensors(
        str(checkpoint.path),
        checkpoint.tensors,
        ROWS,
        blocks=config.layers,
        sizes=config.sizes(),
        plain_name=plain_name,
    )
    mean, std = read_preparation(checkpoint, config.image_size, tokens_per_image(checkpoint))
    return VisionModel(tensors, keys(config, mean, std))


def has_vision_tensors(checkpoint: Checkpoint) -> bool:
    return any(plain_name(name) is not None for name in checkpoint.tensors)


def tokens_per_image(checkpoint: Checkpoint) -> int:
    return integer(f"{checkpoint.path / 'config.json'}", checkpoint.config, "mm_tokens_per_image", 256)


def read_config(where: str, config: Mapping[str, Any]) -> SiglipConfig:
    """Reads vision_config. Raises InvalidInput for values out of range, and for settings that llama.cpp ignores."""
    vision = mapping(where, config, "vision_config")
    text = mapping(where, config, "text_config")
    only(f"{where}: vision_config", vision, "model_type", "siglip_vision_model")
    only(f"{where}: vision_config", vision, "hidden_act", "gelu_pytorch_tanh")
    only(f"{where}: vision_config", vision, "num_channels", 3)
    where = f"{where}: vision_config"
    image, patch = integer(where, vision, "image_size", 224), integer(where, vision, "patch_size", 16)
    result = SiglipConfig(
        layers=integer(where, vision, "num_hidden_layers", 12),
        hidden=integer(where, vision, "hidden_size", 768),
        feed_forward=integer(where, vision, "intermediate_size", 3072),
        heads=integer(where, vision, "num_attention_heads", 12),
        image_size=image,
        patch_size=patch,
        eps=number(where, vision, "layer_norm_eps", 1e-6),
        text_hidden=integer(where, {**config, **text}, "hidden_size", 2304),
        pool=_pool(where, image, patch, integer(where, config, "mm_tokens_per_image", 256)),
    )
    if result.hidden % result.heads:
        raise InvalidInput(f"{where}: {result.heads} attention heads do not divide a hidden_size of {result.hidden}")
    return result


def _pool(where: str, image: int, patch: int, tokens: int) -> int:
    """Returns the patches per side that make one token, so that an image has `tokens` tokens."""
    side, patches = math.isqrt(tokens), image // patch
    if side * side != tokens or image % patch or patches % side:
        raise InvalidInput(
            f"{where}: an image of {image}×{image} in patches of {patch}×{patch} does not pool to "
            f"mm_tokens_per_image, {tokens}"
        )
    return patches // side


def read_preparation(checkpoint: Checkpoint, image_size: int, tokens: int) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation by which image colours are normalized.

    Raises InvalidInput without a preprocessor file, and for image preprocessing that llama.cpp does not do.
    """
    files = [path for name in PREPARATION if (path := checkpoint.file(name)) is not None]
    if not files:
        raise InvalidInput(
            f"{checkpoint.path}: holds neither {' nor '.join(PREPARATION)}, which say how images are prepared; "
            "fetch the one that the original checkpoint has"
        )
    values: dict[str, Any] = {}
    for path in files:
        document = read_json_object(path)
        values |= document | mapping(str(path), document, PREPARATION[path.name])
    where = f"{' and '.join(map(str, files))}"
    for key, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("resample", 2)):
        only(where, values, key, expected)
    only(where, values, "do_pan_and_scan", False)
    only(where, values, "image_seq_length", tokens)
    if isinstance(size := values.get("size"), Mapping):
        only(f"{where}: size", size, "height", image_size)
        only(f"{where}: size", size, "width", image_size)
    factor = values.get("rescale_factor")
    if factor is not None and abs(number(where, values, "rescale_factor", 1) * 255 - 1) > 1e-6:
        raise InvalidInput(f"{where}: rescale_factor is {factor}; the runtime divides by 255")
    return _colours(where, values, "image_mean"), _colours(where, values, "image_std")


PREPARATION = {"preprocessor_config.json": "media_proc_cfg", "processor_config.json": "image_processor"}
"""Files with image preprocessing settings, the later file preferred, and the key of a nested object with them."""


def _colours(where: str, values: Mapping[str, Any], key: str) -> list[float]:
    numbers = values.get(key)
    if not isinstance(numbers, list) or len(numbers) != 3:
        raise InvalidInput(f"{where}: {key} is {quote(repr(numbers), 60)}; it must be three numbers")
    low = 0.0 if key == "image_mean" else 1e-6
    for value in numbers:
        if type(value) not in (int, float) or not low <= value <= 1e3:
            raise InvalidInput(f"{where}: {key} is {quote(repr(numbers), 60)}; each must lie within {low} and 1000")
    return [float(value) for value in numbers]


def vision_types(tensors: Sequence[Tensor], outtype: str) -> list[GGMLQuantizationType]:
    """Returns the type of each tensor for `outtype`, except for FIXED_TYPES."""
    pairs = zip(tensors, outtypes(tensors, outtype), strict=True)
    return [FIXED_TYPES.get(tensor.name, type) for tensor, type in pairs]


def keys(config: SiglipConfig, mean: Sequence[float], std: Sequence[float]) -> tuple[KV, ...]:
    """Returns the keys of the vision tower, in the order llama.cpp's converter writes them."""
    u32, f32, array = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.ARRAY
    entries = [
        KV("general.file_type", u32, 0),
        KV("clip.has_vision_encoder", GGUFValueType.BOOL, True),
        KV("clip.vision.projection_dim", u32, config.text_hidden),
        KV("clip.vision.image_size", u32, config.image_size),
        KV("clip.vision.patch_size", u32, config.patch_size),
        KV("clip.vision.embedding_length", u32, config.hidden),
        KV("clip.vision.feed_forward_length", u32, config.feed_forward),
        KV("clip.vision.block_count", u32, config.layers),
        KV("clip.vision.attention.head_count", u32, config.heads),
        KV("clip.vision.image_mean", array, tuple(mean), f32),
        KV("clip.vision.image_std", array, tuple(std), f32),
        KV("clip.projector_type", GGUFValueType.STRING, "gemma3"),
        KV("clip.vision.attention.layer_norm_epsilon", f32, config.eps),
        KV("clip.use_gelu", GGUFValueType.BOOL, True),
    ]
    if config.pool != DEFAULT_POOL:
        entries.append(KV("clip.vision.projector.scale_factor", u32, config.pool))
    return tuple(entries)
