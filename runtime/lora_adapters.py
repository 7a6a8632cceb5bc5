"""Checks LoRA adapter files against their model before llama.cpp loads them."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.file_access import quote
from ..checkpoint.gguf import GGUFFile, read_gguf
from ..errors import InvalidInput


def checked_loras(model: GGUFFile, loras: Sequence[tuple[str | Path, float]]) -> list[tuple[Path, float]]:
    """`loras` as paths. Raises InvalidInput for a file that is no adapter, or no adapter of `model`."""
    for path, scale in loras:
        if not math.isfinite(scale):
            raise InvalidInput(f"{path}: a scale of {scale}; give a finite number")
        _check(model, read_gguf(Path(path)))
    return [(Path(path), scale) for path, scale in loras]


def _check(model: GGUFFile, adapter: GGUFFile) -> None:
    kind = adapter.value("general.type", "model"), adapter.value("adapter.type", "lora")
    if kind != ("adapter", "lora"):
        what = quote(str(kind[1] if kind[0] == "adapter" else kind[0]))
        raise InvalidInput(
            f"{adapter.path}: no LoRA adapter but {what}; borealis-gguf convert-lora makes one of a PEFT folder"
        )
    made_for, base = (quote(str(file.value("general.architecture"))) for file in (adapter, model))
    if made_for != base:
        raise InvalidInput(f"{adapter.path}: an adapter for {made_for}, but the model is {base}")
    for name in adapter.tensors:
        base, _, part = name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            _check_pair(model, adapter, base)


def _check_pair(model: GGUFFile, adapter: GGUFFile, name: str) -> None:
    a, b = adapter.tensors.get(f"{name}.lora_a"), adapter.tensors.get(f"{name}.lora_b")
    base = model.tensors.get(name)
    if a is None or b is None or base is None:
        missing = "is not in the model" if base is None else "has only one half of its pair"
        raise InvalidInput(f"{adapter.path}: {quote(name)} {missing}; was the adapter made for this model?")
    if name == "token_embd.weight" and "output.weight" not in model.tensors:
        # llama.cpp would multiply the output layer, which is the same tensor, by the wrong matrix, and abort
        raise InvalidInput(
            f"{adapter.path}: changes the embedding of a model whose output is tied to it; merge it into the weights "
            "instead: borealis-gguf convert --lora"
        )
    if name != "token_embd.weight" and (*b.shape[:-1], a.shape[-1]) != base.shape:
        raise InvalidInput(
            f"{adapter.path}: {quote(name)} changes a matrix of {[*b.shape[:-1], a.shape[-1]][:9]}, but the model's is "
            f"{list(base.shape)}; was the adapter made for this model?"
        )
