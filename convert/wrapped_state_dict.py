"""Refuses state dicts that were saved from a wrapper around the model, or from a part of it, by tensor names."""

from dataclasses import dataclass

from ..checkpoint.file_access import quote
from ..checkpoint.folder import Checkpoint
from ..errors import InvalidInput
from .tied_embeddings import EMBEDDINGS, says_tied

SAVE = "save_pretrained(FOLDER)"
LAYOUTS = (
    ".model.language_model.model",
    ".language_model.model",
    ".model.language_model",
    ".model",
    ".transformer",
    "",
)
"""What may stand in front of the embedding in a model that was saved by itself, the longest first."""

BARE = {
    "Gemma3TextModel": "Gemma3ForCausalLM",
    "Gemma3Model": "Gemma3ForConditionalGeneration",
    "MistralModel": "MistralForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "BloomModel": "BloomForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
}
"""Classes without an output layer, and those with one."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """`components` are parts of tensor names that only this wrapper has; `advice` is what to type in Python."""

    what: str
    components: tuple[str, ...]
    advice: str


WRAPPERS = (
    Wrapper(
        "a PEFT model whose adapter was not merged",
        ("base_layer", "base_model", "lora_A", "lora_B", "lora_embedding_A", "modules_to_save", "original_module"),
        f"model.merge_and_unload().{SAVE}; or, for the adapter alone, model.{SAVE} and borealis-gguf convert BASE "
        "--lora FOLDER",
    ),
    Wrapper("TRL's model with a value head", ("v_head", "pretrained_model"), f"model.pretrained_model.{SAVE}"),
    Wrapper("a model compiled by torch.compile", ("_orig_mod",), f"model._orig_mod.{SAVE}"),
    Wrapper(
        "a model wrapped by FSDP",
        ("_fsdp_wrapped_module",),
        "accelerator.unwrap_model(model).save_pretrained(FOLDER, state_dict=accelerator.get_state_dict(model))",
    ),
    Wrapper(
        "a model wrapped for activation checkpointing",
        ("_checkpoint_wrapped_module",),
        "model.save_pretrained(FOLDER, state_dict={name.replace('_checkpoint_wrapped_module.', ''): value for name, "
        "value in model.state_dict().items()})",
    ),
    Wrapper(
        "a model wrapped by DDP, DataParallel or DeepSpeed",
        ("module", "_forward_module"),
        f"model.module.{SAVE} or accelerator.unwrap_model(model).{SAVE}",
    ),
)


def refuse_wrapped(checkpoint: Checkpoint) -> None:
    """Raises InvalidInput for a wrapper's state dict, with what to type to save the model itself."""
    for wrapper in WRAPPERS:
        own = set(wrapper.components)
        if name := next((name for name in checkpoint.tensors if not own.isdisjoint(name.split("."))), None):
            what = f"the state dict of {wrapper.what} ({_shown(name)})"
            raise InvalidInput(f"{checkpoint.path}: {what}; save the model itself: {wrapper.advice}")
    embedding = next((name for name in checkpoint.tensors if name.endswith(EMBEDDINGS)), "")
    front = f".{embedding}".rsplit(".", 2)[0]
    if embedding == EMBEDDINGS[0] or front == ".language_model":
        raise InvalidInput(f"{checkpoint.path}: {_shown(embedding)}: {bare_advice(checkpoint)}")
    layout = next(layout for layout in LAYOUTS if front.endswith(layout))
    if prefix := front.removesuffix(layout).removeprefix("."):
        raise InvalidInput(
            f"{checkpoint.path}: the state dict of a wrapper that holds the model as {_shown(prefix)} "
            f"({_shown(embedding)}); save the model itself: model.{_shown(prefix)}.{SAVE}"
        )


def bare_advice(checkpoint: Checkpoint) -> str:
    """What to do with a model that was saved without the class that holds its output layer."""
    what = "a bare model, saved without its output layer"
    if not says_tied(checkpoint.config):
        return f"{what}, which is needed to generate text; save the whole model (…ForCausalLM) with save_pretrained"
    load = f"AutoModelForCausalLM.from_pretrained({str(checkpoint.path)!r}).{SAVE}"
    return f"{what}, which is the embedding: from transformers import AutoModelForCausalLM; {load}"


def _shown(name: str) -> str:
    return quote(name).strip("'")
