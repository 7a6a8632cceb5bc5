"""Describes a LoRA adapter as a GGUF adapter file for llama.cpp and Ollama: pairs of matrices A and B, and alpha.

The runtime adds scale · alpha / r · B @ A, with one alpha per file and r the rows of A. For other scalings (rsLoRA,
alpha_pattern), B is multiplied by the quotient, which llama.cpp's converter does not do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGUFValueType

from ...checkpoint.adapter_folder import command_line
from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.lora import Adapter, LoraModule
from ...checkpoint.types import KV, GGMLQuantizationType, Slice
from ...errors import InvalidInput
from ...pipeline.plan import EqualSlices, GGUFModel, Tensor, TensorSource
from ..describe import read_text
from ..metadata.general import general_kv
from ..outtype import OUTTYPES, resolve_outtype
from ..tied_embeddings import alike
from ..wrapped_state_dict import refuse_wrapped
from .merge import Merge, plan_merge

EMBEDDING = "token_embd.weight"


def describe_adapter(
    checkpoint: Checkpoint, adapter: Adapter, outtype: str, *, model_name: str | None = None
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """Returns the GGUF of `adapter` for the base model `checkpoint`, and its tensors' types (f32, f16, bf16 or auto).

    Raises InvalidInput if the adapter belongs to another model, or changes tensors that an adapter file cannot hold.
    """
    refuse_wrapped(checkpoint)
    merge = plan_merge(checkpoint, [(adapter, 1.0)])
    text = read_text(merge.checkpoint)
    homes: dict[Slice, list[Tensor]] = {}
    for tensor in merge.apply(text.tensors):
        for update in tensor.source.updates:
            homes.setdefault(update.up if update.transposed else update.down, []).append(tensor)
    equal = _check_runnable(checkpoint, adapter, merge, homes)
    alpha = common_alpha(adapter)
    tensors = tuple(pair for module in adapter.modules for pair in _pairs(module, homes, alpha))
    weights = sum(prod(t.shape[:-1]) * module.a.shape[1] for module in adapter.modules for t in homes[module.a])
    kv = (
        KV("general.architecture", GGUFValueType.STRING, text.architecture),
        KV("general.type", GGUFValueType.STRING, "adapter"),
        KV("adapter.type", GGUFValueType.STRING, "lora"),
        # llama.cpp's converter passes a negative number of weights for adapters
        *general_kv(
            Checkpoint(adapter.path, None, {}, {}, use_card=checkpoint.use_card), -weights, model_name=model_name
        ),
        KV("adapter.lora.alpha", GGUFValueType.FLOAT32, alpha),
        KV("general.quantization_version", GGUFValueType.UINT32, GGML_QUANT_VERSION),
    )
    type = OUTTYPES[resolve_outtype(tensors, outtype)][0]
    return GGUFModel(kv, tensors, equal=equal), [type] * len(tensors)


def common_alpha(adapter: Adapter) -> float:
    """Returns the alpha that all modules share, else the configuration's."""
    alphas = {float(np.float32(module.scaling * module.rank)) for module in adapter.modules}
    return alphas.pop() if len(alphas) == 1 else adapter.alpha


def _pairs(module: LoraModule, homes: Mapping[Slice, list[Tensor]], alpha: float) -> Iterator[Tensor]:
    factor = float(np.float32(module.scaling * module.rank / alpha))
    for home in homes[module.a]:
        yield Tensor(f"{home.name}.lora_a", TensorSource(module.a), module.a.shape)
        # B has the rows of the matrix, so the same row order applies
        source = replace(home.source, slice=module.b, shift=0.0, updates=(), precision=None, scale=factor)
        yield Tensor(f"{home.name}.lora_b", source, (*home.shape[:-1], module.rank))


def _check_runnable(
    checkpoint: Checkpoint, adapter: Adapter, merge: Merge, homes: Mapping[Slice, list[Tensor]]
) -> tuple[EqualSlices, ...]:
    """Raises InvalidInput for an adapter that llama.cpp cannot run, with the command that merges it instead.

    PEFT saves the base model's unchanged tensor beside the LoRA matrices of an output layer. Returns the pairs of
    tensors that must therefore be equal, to be compared before writing.
    """
    base = checkpoint.repo_id or str(checkpoint.path)
    command = command_line("borealis-gguf", "convert", base, "--lora", str(adapter.path))

    def refusal(fault: str) -> str:
        advice = "which as an adapter llama.cpp cannot run; merge it into the model instead"
        return f"{adapter.path}: {fault}, {advice}: {command}"

    if tied := [m.module for m in adapter.modules if any(home.name == EMBEDDING for home in homes.get(m.a, ()))]:
        raise InvalidInput(refusal(f"changes the embedding or the output layer that is tied to it, {quote(tied[0])}"))
    if vision_modules := [module.module for module in adapter.modules if module.a not in homes]:
        raise InvalidInput(refusal(f"changes {quote(vision_modules[0])} on the vision side"))
    stored, trained = checkpoint.tensors, [adapter.replaced[name] for name in adapter.copies]
    equal = []
    for name, slice in merge.checkpoint.tensors.items():
        own = stored.get(name)
        if own is None or slice in trained or not alike(own, slice):
            raise InvalidInput(refusal(f"holds {quote(name)} whole"))
        if own != slice:
            equal.append(EqualSlices(own, slice, refusal(f"holds {quote(name)} whole")))
    return (*merge.equal, *equal)
