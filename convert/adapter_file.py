"""An adapter as a GGUF of its own, for llama.cpp's and Ollama's run time: pairs of small matrices, and alpha.

The run time adds scale · alpha / r · B @ A, with one alpha for the whole file and r the height of A. Where an adapter
has other scalings (rsLoRA, alpha_pattern), B is multiplied by what is missing; llama.cpp's converter ignores these.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGUFValueType

from ..checkpoint.files import quote
from ..checkpoint.folder import Checkpoint
from ..checkpoint.lora import Adapter, LoraModule
from ..checkpoint.types import KV, GGMLQuantizationType, Slice
from ..errors import InvalidInput
from ..pipeline.plan import Model, Tensor, TensorSource
from .adapters import plan_merge
from .describe import read_text
from .metadata import general_kv
from .outtype import OUTTYPES, resolve_outtype

MERGE = "llama.cpp cannot run; merge it into the model instead: borealis-gguf convert --lora"


def describe_adapter(
    checkpoint: Checkpoint, adapter: Adapter, outtype: str, *, model_name: str | None = None
) -> tuple[Model, list[GGMLQuantizationType]]:
    """The GGUF of `adapter` for the model that `checkpoint` is, and its tensors' types (f32, f16, bf16 or auto).

    Raises InvalidInput when the adapter is not this model's, and for what an adapter file cannot hold.
    """
    _check(adapter)
    text = read_text(checkpoint)
    merged = plan_merge(checkpoint, [(adapter, 1.0)]).apply(text.tensors)
    homes: dict[Slice, list[Tensor]] = {}
    for tensor in merged:
        for update in tensor.source.updates:
            homes.setdefault(update.down, []).append(tensor)
    if lost := [module.module for module in adapter.modules if module.a not in homes]:
        raise InvalidInput(f"{adapter.path}: changes {quote(lost[0])} on the vision side, which as an adapter {MERGE}")
    alpha = common_alpha(adapter)
    tensors = tuple(pair for module in adapter.modules for pair in _pairs(module, homes, alpha))
    weights = sum(prod(t.shape[:-1]) * module.a.shape[1] for module in adapter.modules for t in homes[module.a])
    kv = (
        KV("general.architecture", GGUFValueType.STRING, text.architecture),
        KV("general.type", GGUFValueType.STRING, "adapter"),
        KV("adapter.type", GGUFValueType.STRING, "lora"),
        # less than no weights: llama.cpp's way to say that this is not the size of a model
        *general_kv(
            Checkpoint(adapter.path, None, {}, {}, use_card=checkpoint.use_card), -weights, model_name=model_name
        ),
        KV("adapter.lora.alpha", GGUFValueType.FLOAT32, alpha),
        KV("general.quantization_version", GGUFValueType.UINT32, GGML_QUANT_VERSION),
    )
    type = OUTTYPES[resolve_outtype(tensors, outtype)][0]
    return Model(kv, tensors), [type] * len(tensors)


def common_alpha(adapter: Adapter) -> float:
    """The alpha that is right for every module, if there is one; else the configuration's."""
    alphas = {float(np.float32(module.scaling * module.rank)) for module in adapter.modules}
    return alphas.pop() if len(alphas) == 1 else adapter.alpha


def _pairs(module: LoraModule, homes: Mapping[Slice, list[Tensor]], alpha: float) -> Iterator[Tensor]:
    factor = float(np.float32(module.scaling * module.rank / alpha))
    for home in homes[module.a]:
        yield Tensor(f"{home.name}.lora_a", TensorSource(module.a), module.a.shape)
        # the rows of B are the rows of the matrix, in whatever order GGUF has them
        source = replace(home.source, slice=module.b, shift=0.0, updates=(), precision=None, scale=factor)
        yield Tensor(f"{home.name}.lora_b", source, (*home.shape[:-1], module.rank))


def _check(adapter: Adapter) -> None:
    if adapter.replaced:
        name = quote(next(iter(adapter.replaced)))
        raise InvalidInput(f"{adapter.path}: holds {name} whole, which as part of an adapter {MERGE}")
    embedding = next((module.module for module in adapter.modules if module.embedding), None)
    if embedding is not None:
        raise InvalidInput(f"{adapter.path}: changes the embedding {quote(embedding)}, which as an adapter {MERGE}")
