"""The cross check's definitions of architectures, from transformers' classes and independent of `convert`.

They state a second time, on purpose, what `convert` has tables for, and take nothing from those: an error there or here
makes the two disagree. Sources are transformers' configuration and model classes, and how llama.cpp uses the tensors of
a GGUF.
"""

from collections.abc import Mapping
from typing import Any

from .definition import Definition, config_part
from .transformers_settings import (
    BLOOM_KEYS,
    DECODER_KEYS,
    GEMMA3_KEYS,
    LLAMA,
    LLAMA_KEYS,
    MISTRAL,
    QWEN2,
    SIGLIP_KEYS,
    bloom_settings,
    decoder_settings,
    gemma3_settings,
    siglip_settings,
)
from .transformers_weights import BLOOM_WEIGHTS, GEMMA3_WEIGHTS, LLAMA_WEIGHTS, QWEN2_WEIGHTS, SIGLIP_WEIGHTS

_GEMMA3 = Definition("gemma3", "gemma3", gemma3_settings, GEMMA3_KEYS, GEMMA3_WEIGHTS)
DEFINITIONS = {
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "MistralForCausalLM": Definition("llama", "llama", decoder_settings(MISTRAL), LLAMA_KEYS, LLAMA_WEIGHTS),
    "LlamaForCausalLM": Definition("llama", "llama", decoder_settings(LLAMA), LLAMA_KEYS, LLAMA_WEIGHTS),
    "Qwen2ForCausalLM": Definition("qwen2", "qwen2", decoder_settings(QWEN2), DECODER_KEYS, QWEN2_WEIGHTS),
    "BloomForCausalLM": Definition("bloom", "bloom", bloom_settings, BLOOM_KEYS, BLOOM_WEIGHTS, block_count="n_layer"),
}
VISION = {
    "Gemma3ForConditionalGeneration": Definition("clip", "clip.vision", siglip_settings, SIGLIP_KEYS, SIGLIP_WEIGHTS),
}


def definition_of(config: Mapping[str, Any], *, vision: bool = False) -> tuple[str, Definition | None]:
    """The architecture that config.json names, and its definition; None for one that is not defined here."""
    lists = [part.get("architectures") for part in (config_part(config, "text_config"), config)]
    names = [names[0] for names in lists if isinstance(names, list) and names and isinstance(names[0], str)]
    name = names[0] if names else ""
    return name, (VISION if vision else DEFINITIONS).get(name)
