"""The plan of one quantized file: what a source holds, the type that a preset gives each tensor, the metadata."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .checkpoint.folder import Checkpoint
from .checkpoint.gguf import GGUFFile
from .checkpoint.gguf_validation import check_model
from .checkpoint.imatrix import Imatrix
from .checkpoint.lora import Adapter
from .checkpoint.types import KV, UNQUANTIZED, GGMLQuantizationType
from .convert.describe import describe
from .errors import InvalidInput
from .pipeline.layout import lay_out
from .pipeline.plan import FilePlan, GGUFModel, Tensor, gguf_tensors
from .quantize.choose import Choice, TypeOptions, choose_types, file_order, model_shape
from .quantize.importance import importance_of, what_is_missing
from .quantize.metadata import file_type_of, imatrix_kv, quantized_kv
from .quantize.presets import Preset

TENSOR_TYPE = (
    ("output.weight", "--output-tensor-type {}"),
    ("token_embd.weight", "--token-embedding-type {}"),
    ("", "--tensor-type {name}={}"),
)
"""Options that give tensors another type, as `FilePlan.retype` has them."""


def model_to_quantize(
    source: Checkpoint | GGUFFile, model_name: str | None, adapters: Sequence[tuple[Adapter, float]]
) -> tuple[GGUFModel, list[GGMLQuantizationType]]:
    """The model in its output order, and the type each tensor keeps if no preset changes it."""
    if isinstance(source, Checkpoint):
        model, types = describe(source, "f32", model_name=model_name, loras=adapters)
    else:
        if adapters:
            raise InvalidInput(f"{source.path}: an adapter is merged into the checkpoint, not into a GGUF; give that")
        if model_name:
            raise InvalidInput(f"{source.path}: --model-name needs a checkpoint; a GGUF keeps its name")
        check_model(source)
        model = GGUFModel(source.kv, gguf_tensors(source.tensors))
        types = [t.source.slice.type for t in model.tensors]
    by_name = dict(zip((t.name for t in model.tensors), zip(model.tensors, types, strict=True), strict=True))
    ordered = [by_name[name] for name in file_order(by_name)]
    return replace(model, tensors=tuple(t for t, _ in ordered)), [type for _, type in ordered]


def plan_preset(
    model: GGUFModel,
    types: Sequence[GGMLQuantizationType],
    preset: Preset,
    options: TypeOptions,
    overrides: tuple[KV, ...],
    *,
    path: Path,
    matrix: tuple[Path, Imatrix] | None,
    requantize: bool,
) -> FilePlan:
    """Plan the file of one preset. `matrix` is the importance matrix with its path; `requantize` allows sources that
    are quantized already. Raises InvalidInput where a type needs importance values that are missing."""
    infos = [(t.name, t.shape, type) for t, type in zip(model.tensors, types, strict=True)]
    choices = choose_types(infos, model_shape((*model.kv, *overrides)), preset, options)
    entries = matrix[1].entries if matrix else {}
    importance = [importance_of(matrix[1], t.name, t.shape) if matrix else None for t in model.tensors]
    for tensor, choice, values in zip(model.tensors, choices, importance, strict=True):
        if choice.requires_imatrix and values is None:
            raise InvalidInput(f"{preset.name}: {tensor.name} as {choice.type.name} {_needs(matrix, tensor.name)}")
        _check_choice(tensor, choice, requantize)
    if matrix:
        overrides += imatrix_kv(matrix[0].name, matrix[1].datasets, len(entries), matrix[1].chunk_count)
    file_type = file_type_of(model.kv, types) if preset.ftype is None else preset.ftype
    return lay_out(
        path,
        replace(model, kv=quantized_kv(model.kv, file_type, overrides)),
        [choice.type for choice in choices],
        requested=[choice.requested for choice in choices],
        importance=importance,
        label=preset.name,
        retype=TENSOR_TYPE if preset.type not in UNQUANTIZED else (("", "the preset {}"),),
    )


def _needs(matrix: tuple[Path, Imatrix] | None, name: str) -> str:
    """What is missing of the importance matrix that tensor `name` needs, and what to do."""
    if matrix is None:
        return "needs an importance matrix; give one with --imatrix"
    other = TENSOR_TYPE[-1][1].format("q4_k", name=name)
    what = what_is_missing(matrix[1], name)
    return f"needs importance values, and {matrix[0]} has {what} for it; collect the matrix again, or use {other}"


def _check_choice(tensor: Tensor, choice: Choice, requantize: bool) -> None:
    source = tensor.source.slice.type
    if source != choice.type and source not in UNQUANTIZED and not requantize:
        raise InvalidInput(
            f"{tensor.source.slice.path}: {tensor.name} is quantized already ({source.name}); start from the BF16 or "
            "F32 file, or accept the loss with --allow-requantize"
        )


def require_known_tensor(matrix: Imatrix, path: Path, model: GGUFModel) -> None:
    """A matrix that names no tensor of the model would change nothing. Raises InvalidInput."""
    if not any(t.name in matrix.entries for t in model.tensors):
        raise InvalidInput(f"{path}: names no tensor of this model; it belongs to another one")
