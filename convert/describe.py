"""Describes the GGUF of a checkpoint: metadata, tensor names, types. Reads headers and JSON, no weights."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFValueType

from ..checkpoint.file_access import quote
from ..checkpoint.folder import Checkpoint
from ..checkpoint.types import KV, GGMLQuantizationType
from ..errors import InvalidInput
from ..pipeline.plan import GGUFModel
from .architecture import TextModel
from .architectures import bloom, gemma3, llama, qwen2, siglip
from .lora.merge import plan_merge
from .lora.targets import Loras
from .metadata.general import metadata_kv
from .outtype import file_type, outtypes
from .tied_embeddings import repeated_head
from .tokenizers.token_validation import is_text
from .wrapped_state_dict import BARE, bare_advice, refuse_wrapped

ARCHITECTURES: dict[str, Callable[[Checkpoint], TextModel]] = {
    "Gemma3ForCausalLM": gemma3.read_text,
    "Gemma3ForConditionalGeneration": gemma3.read_text,
    "MistralForCausalLM": llama.read_mistral,
    "LlamaForCausalLM": llama.read_llama,
    "BloomForCausalLM": bloom.read_text,
    "Qwen2ForCausalLM": qwen2.read_text,
}
"""What config.json calls an architecture, and the function that reads it. Nothing named there is ever imported."""

VISION: dict[str, Callable[[Checkpoint], siglip.VisionModel]] = {"Gemma3ForConditionalGeneration": siglip.read_vision}
"""Architectures with a vision tower, and the function that reads it."""

log = logging.getLogger("borealis_gguf")


def describe(
    checkpoint: Checkpoint, outtype: str, *, model_name: str | None = None, loras: Loras = ()
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """The GGUF that `checkpoint` means, and the type of each tensor for `outtype` (f32, f16, bf16, q8_0 or auto).

    `general.name` comes from the model card, the configuration or the folder; `model_name` overrides it. `loras` are
    adapters to merge, each with a scale.
    Raises InvalidInput, in one line, for a checkpoint that cannot become a GGUF which computes what it computes.
    """
    refuse_wrapped(checkpoint)
    merge = plan_merge(checkpoint, loras)
    merge.warn()
    text = read_text(merge.checkpoint)
    text = replace(text, tensors=merge.apply(text.tensors))
    type = file_type(text.tensors, outtype)
    kv = (
        KV("general.architecture", GGUFValueType.STRING, text.architecture),
        KV("general.type", GGUFValueType.STRING, "model"),
        *metadata_kv(checkpoint, text.tensors, model_name=model_name),
        *(replace(kv, value=int(type)) if kv.key == "general.file_type" else kv for kv in text.keys),
        KV("general.quantization_version", GGUFValueType.UINT32, GGML_QUANT_VERSION),
        *text.tokenizer,
    )
    _check_text(str(checkpoint.path), kv)
    equal = (*repeated_head(checkpoint), *merge.equal)
    model = GGUFModel(kv, text.tensors, checkpoint, equal)
    return model, outtypes(text.tensors, outtype)


def read_text(checkpoint: Checkpoint) -> TextModel:
    """Read the text model of `checkpoint` by its architecture's rows and keys."""
    return ARCHITECTURES[architecture(checkpoint)](checkpoint)


def describe_vision(
    checkpoint: Checkpoint, outtype: str, *, model_name: str | None = None, loras: Loras = ()
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """The mmproj GGUF of the vision tower of `checkpoint`; everything else as in `describe`."""
    refuse_wrapped(checkpoint)
    name = architecture(checkpoint)
    if name not in VISION:
        raise InvalidInput(f"{checkpoint.path / 'config.json'}: {name} cannot see, so there is no mmproj to make")
    merge = plan_merge(checkpoint, loras)
    vision = VISION[name](merge.checkpoint)
    vision = replace(vision, tensors=merge.apply(vision.tensors, vision=True))
    type = file_type(vision.tensors, outtype)
    kv = (
        KV("general.architecture", GGUFValueType.STRING, siglip.ARCHITECTURE),
        KV("general.type", GGUFValueType.STRING, "mmproj"),
        *metadata_kv(checkpoint, vision.tensors, model_name=model_name),
        *(replace(kv, value=int(type)) if kv.key == "general.file_type" else kv for kv in vision.keys),
        KV("general.quantization_version", GGUFValueType.UINT32, GGML_QUANT_VERSION),
    )
    _check_text(str(checkpoint.path), kv)
    return GGUFModel(kv, vision.tensors, checkpoint), siglip.vision_types(vision.tensors, outtype)


def has_vision(checkpoint: Checkpoint) -> bool:
    """Whether `checkpoint` has a vision tower. One that is in config.json alone does not count, with a warning."""
    if architecture(checkpoint) not in VISION or not checkpoint.config.get("vision_config"):
        return False
    if found := siglip.has_vision_tensors(checkpoint):
        return found
    log.warning("%s: config.json describes a vision side that the tensors lack; no mmproj is made", checkpoint.path)
    return False


def architecture(checkpoint: Checkpoint) -> str:
    """The architecture of the text model, one of ARCHITECTURES."""
    where, config = checkpoint.path / "config.json", checkpoint.config
    text = config.get("text_config")
    name = (_first(text) if isinstance(text, Mapping) else None) or _first(config)
    if name in BARE:
        raise InvalidInput(f"{where}: {name}: {bare_advice(checkpoint)}")
    if name not in ARCHITECTURES:
        what = f"the architecture {quote(name)} is not known" if name else "it names no architecture"
        raise InvalidInput(f"{where}: {what}; known are {', '.join(ARCHITECTURES)}")
    return name


def _first(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _check_text(where: str, entries: Iterable[KV]) -> None:
    """JSON can spell half characters (`\\ud800`), which no UTF-8 file can hold."""
    for kv in entries:
        texts = (kv.value,) if isinstance(kv.value, str) else kv.value if kv.item_type == GGUFValueType.STRING else ()
        if not is_text("".join(texts)):
            text = next(text for text in texts if not is_text(text))
            raise InvalidInput(f"{where}: {kv.key} holds {quote(text)}, which is not text")
