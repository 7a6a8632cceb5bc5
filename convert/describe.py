"""Describes the GGUF of a checkpoint: metadata, tensor names, types. Reads headers and JSON, never weights."""

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
"""Architecture names in config.json, and the functions that read them. No name is ever imported as code."""

VISION: dict[str, Callable[[Checkpoint], siglip.VisionModel]] = {"Gemma3ForConditionalGeneration": siglip.read_vision}
"""Architectures with a vision tower, and the functions that read the tower."""

log = logging.getLogger("borealis_gguf")


def describe(
    checkpoint: Checkpoint, outtype: str, *, model_name: str | None = None, loras: Loras = ()
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """Returns the GGUF model of `checkpoint`, and each tensor's type for `outtype` (f32, f16, bf16, q8_0 or auto).

    `general.name` comes from the model card, the configuration or the folder; `model_name` overrides it. `loras` are
    adapters to merge, each with a scale.
    Raises InvalidInput for a checkpoint whose computation llama.cpp would not reproduce from a GGUF.
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
    _check_utf8(str(checkpoint.path), kv)
    equal = (*repeated_head(checkpoint), *merge.equal)
    model = GGUFModel(kv, text.tensors, checkpoint, equal)
    return model, outtypes(text.tensors, outtype)


def read_text(checkpoint: Checkpoint) -> TextModel:
    """Reads the text model of `checkpoint` with the module of its architecture."""
    return ARCHITECTURES[architecture(checkpoint)](checkpoint)


def describe_vision(
    checkpoint: Checkpoint, outtype: str, *, model_name: str | None = None, loras: Loras = ()
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """Returns the mmproj GGUF model of the vision tower; arguments and errors are those of `describe`."""
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
    _check_utf8(str(checkpoint.path), kv)
    return GGUFModel(kv, vision.tensors, checkpoint), siglip.vision_types(vision.tensors, outtype)


def has_vision(checkpoint: Checkpoint) -> bool:
    """Whether `checkpoint` has vision tower tensors; warns if only config.json describes a tower."""
    if architecture(checkpoint) not in VISION or not checkpoint.config.get("vision_config"):
        return False
    if has_tensors := siglip.has_vision_tensors(checkpoint):
        return has_tensors
    log.warning("%s: config.json describes a vision side that the tensors lack; no mmproj is made", checkpoint.path)
    return False


def architecture(checkpoint: Checkpoint) -> str:
    """Returns the architecture of the text model. Raises InvalidInput for a name that is not in ARCHITECTURES."""
    where, config = checkpoint.path / "config.json", checkpoint.config
    text = config.get("text_config")
    name = (_first_architecture(text) if isinstance(text, Mapping) else None) or _first_architecture(config)
    if name in BARE:
        raise InvalidInput(f"{where}: {name}: {bare_advice(checkpoint)}")
    if name not in ARCHITECTURES:
        problem = f"the architecture {quote(name)} is not known" if name else "it names no architecture"
        raise InvalidInput(f"{where}: {problem}; known are {', '.join(ARCHITECTURES)}")
    return name


def _first_architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _check_utf8(where: str, entries: Iterable[KV]) -> None:
    """Refuses lone surrogates: JSON can contain `\\ud800`, but UTF-8 cannot encode it."""
    for kv in entries:
        texts = (kv.value,) if isinstance(kv.value, str) else kv.value if kv.item_type == GGUFValueType.STRING else ()
        if not is_text("".join(texts)):
            text = next(text for text in texts if not is_text(text))
            raise InvalidInput(f"{where}: {kv.key} holds {quote(text)}, which is not text")
