"""Refuses state dicts that were saved from a wrapper (DDP, FSDP, PEFT, …) or without the output layer."""

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
"""Prefixes of the embedding's name in an unwrapped model, the longest first."""

BARE = {
    "Gemma3TextModel": "Gemma3ForCausalLM",
    "Gemma3Model": "Gemma3ForConditionalGeneration",
    "MistralModel": "MistralForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "BloomModel": "BloomForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
}
"""transformers classes without an output layer, mapped to the class with one."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """`components` are parts of tensor names that only this wrapper adds; `advice` is the Python call to type."""

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
    """Raises InvalidInput for a wrapper's state dict, with the Python call that saves the model itself."""
    for wrapper in WRAPPERS:
        own = set(wrapper.components)
        if name := next((name for name in checkpoint.tensors if not own.isdisjoint(name.split("."))), None):
            description = f"the state dict of {wrapper.what} ({_unquoted(name)})"
            raise InvalidInput(f"{checkpoint.path}: {description}; save the model itself: {wrapper.advice}")
    embedding = next((name for name in checkpoint.tensors if name.endswith(EMBEDDINGS)), "")
    front = f".{embedding}".rsplit(".", 2)[0]
    if embedding == EMBEDDINGS[0] or front == ".language_model":
        raise InvalidInput(f"{checkpoint.path}: {_unquoted(embedding)}: {bare_advice(checkpoint)}")
    layout = next(layout for layout in LAYOUTS if front.endswith(layout))
    if prefix := front.removesuffix(layout).removeprefix("."):
        raise InvalidInput(
            f"{checkpoint.path}: the state dict of a wrapper that holds the model as {_unquoted(prefix)} "
            f"({_unquoted(embedding)}); save the model itself: model.{_unquoted(prefix)}.{SAVE}"
        )


def bare_advice(checkpoint: Checkpoint) -> str:
    """The advice for a model that was saved without its output layer."""
    problem = "a bare model, saved without its output layer"
    if not says_tied(checkpoint.config):
        return f"{problem}, which is needed to generate text; save the whole model (…ForCausalLM) with save_pretrained"
    load = f"AutoModelForCausalLM.from_pretrained({str(checkpoint.path)!r}).{SAVE}"
    return f"{problem}, which is the embedding: from transformers import AutoModelForCausalLM; {load}"


def _unquoted(name: str) -> str:
    return quote(name).strip("'")
