"""SigLIP and Gemma 3's projector: the vision tower of 4b, 12b and 27b. It makes an mmproj file of its own.

Defaults are those of transformers' SiglipVisionConfig. How images are prepared stands in preprocessor_config.json or,
in newer checkpoints, in processor_config.json; the runtime takes mean and deviation from the GGUF, the rest as given.
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
"""Patches along each side that make one token, where no key says otherwise."""

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
"""A head that makes one vector of an image. Gemma 3 has no use for it, though some checkpoints keep it."""

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
    # Kept as [hidden, text hidden], the way the checkpoint has it: the runtime transposes.
    Row(f"{PROJECTOR}mm_input_projection_weight", "mm.input_projection.weight", ("hidden", "text hidden")),
    # The projector's norm is Gemma's, so its weight is stored less one; those of the tower are not.
    Row(f"{PROJECTOR}mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", HIDDEN, shift=1.0),
)

FIXED_TYPES = {
    "v.patch_embd.weight": GGMLQuantizationType.F32,
    "v.position_embd.weight": GGMLQuantizationType.F32,
    "mm.input_projection.weight": GGMLQuantizationType.F16,
}
"""Types that no outtype changes: GPU kernels of the runtime have failed on others."""

WRAPPERS = re.compile(r"(?:model\.|language_model\.)*")
TOWERS = re.compile(r"(?:vision_tower\.vision_model|vision_tower|vision_model)\.")
PROJECTORS = re.compile(r"(?:multi_modal_projector|multimodal_projector)\.")


def plain_name(name: str) -> str | None:
    """A checkpoint's tensor name as ROWS spell it, in all the layouts there are; None for the text side.

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
    """The vision side; `keys` as in `TextModel`, with a placeholder for `general.file_type`."""

    tensors: tuple[Tensor, ...]
    keys: tuple[KV, ...]


@dataclass(frozen=True, slots=True)
class SiglipConfig:
    """What config.json says of the vision side, checked. `pool` is the patches along each side of a token."""

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
        """The axes that ROWS name."""
        return {
            "hidden": self.hidden,
            "feed-forward": self.feed_forward,
            "channels": 3,
            "patch": self.patch_size,
            "patches": self.patches,
            "text hidden": self.text_hidden,
        }


def read_vision(checkpoint: Checkpoint) -> VisionModel:
    """What the vision side of a Gemma 3 checkpoint means in GGUF.

    Raises InvalidInput when there is none, when tensors and configurations do not belong together, or when llama.cpp's
    runtime would compute something else than they say.
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
    """Raises InvalidInput for values out of range, and for what the runtime ignores."""
    vision = mapping(where, config, "vision_config")
    text = mapping(where, config, "text_config")
    only(f"{where}: vision_config", vision, "model_type", "siglip_vision_model")
    only(f"{where}: vision_config", vision, "hidden_act", "gelu_pytorch_tanh")
    only(f"{where}: vision_config", vision, "num_channels", 3)
    where = f"{where}: vision_config"
    image, patch = integer(where, vision, "image_size", 224), integer(where, vision, "patch_size", 16)
    read = SiglipConfig(
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
    if read.hidden % read.heads:
        raise InvalidInput(f"{where}: {read.heads} attention heads do not divide a hidden_size of {read.hidden}")
    return read


def _pool(where: str, image: int, patch: int, tokens: int) -> int:
    """How many patches along each side make one token, so that `tokens` of them make an image."""
    side, patches = math.isqrt(tokens), image // patch
    if side * side != tokens or image % patch or patches % side:
        raise InvalidInput(
            f"{where}: an image of {image}×{image} in patches of {patch}×{patch} does not pool to "
            f"mm_tokens_per_image, {tokens}"
        )
    return patches // side


def read_preparation(checkpoint: Checkpoint, image_size: int, tokens: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of the colours, which images are normalized by.

    Raises InvalidInput when no file says so, or when images are prepared in a way that the runtime does not know.
    """
    files = [path for name in PREPARATION if (path := checkpoint.file(name)) is not None]
    if not files:
        raise InvalidInput(
            f"{checkpoint.path}: holds neither {' nor '.join(PREPARATION)}, which say how images are prepared; "
            "fetch the one that the original checkpoint has"
        )
    values: dict[str, Any] = {}
    for path in files:
        read = read_json_object(path)
        values |= read | mapping(str(path), read, PREPARATION[path.name])
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
"""Files that say how images are prepared, the later one in preference; each may hold it one level down."""


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
    """The type of each tensor; some are the same whatever `outtype` says."""
    pairs = zip(tensors, outtypes(tensors, outtype), strict=True)
    return [FIXED_TYPES.get(tensor.name, type) for tensor, type in pairs]


def keys(config: SiglipConfig, mean: Sequence[float], std: Sequence[float]) -> tuple[KV, ...]:
    """The keys of the vision side, in the order llama.cpp's converter writes them."""
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
