"""The library: the same names as the commands. Plans read headers and nothing else; `execute` does the work.

    plans = plan_quantize("NbAiLab/borealis-4b", ["Q4_K_M", "Q8_0"], Path("gguf"))
    results = execute(plans, on_progress=lambda p: show(p.done / p.total))

This is the one module that puts the rooms together: checkpoint, convert, quantize, pipeline and quality.
"""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from .checkpoint.folder import open_checkpoint
from .checkpoint.gguf import GGUFFile, read_gguf
from .checkpoint.gguf_model import check_model
from .checkpoint.hub import Source, resolve_source
from .checkpoint.imatrix import Imatrix, read_imatrix
from .checkpoint.types import KV
from .convert.describe import describe
from .errors import InvalidInput
from .pipeline import execute as pipeline
from .pipeline.execute import FileResult, Progress
from .pipeline.layout import lay_out
from .pipeline.plan import Codec, FilePlan, Model, Tensor, TensorSource
from .quality.check import QuickCheck, check_file, read_lines
from .quality.report import Report
from .quantize import ggml, native
from .quantize.choose import Choice, Options, choose_types, facts_from_kv, file_order
from .quantize.importance import importance_of
from .quantize.metadata import file_type_of, imatrix_kv, quantized_kv
from .quantize.presets import Preset, find_preset, parse_tensor_type, parse_type

T = GGMLQuantizationType
UNQUANTIZED = (T.F32, T.F16, T.BF16)
CODEC = Codec(native.encode, ggml.decode, ggml.validate)
TYPE_SUFFIX = re.compile(r"[-.](F32|F16|BF16|I?Q\d\w*|TQ\d_0|MXFP4\w*)$", re.IGNORECASE)
SPLIT_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


def plan_convert(
    source: str | Path,
    output: Path | None = None,
    *,
    outtype: str = "auto",
    model_name: str | None = None,
    revision: str | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> FilePlan:
    """Plan the conversion of a checkpoint (a folder, or a Hub id, which is downloaded) to one GGUF.

    `outtype` is auto, f32, f16, bf16 or q8_0; `output` a file, an existing folder, or None for the working directory;
    `on_download(done, total)` is called in bytes while a Hub id is fetched.
    Raises InvalidInput for whatever can be known to go wrong without reading a weight.
    """
    found = resolve_source(source, revision=revision, on_progress=on_download)
    if found.kind == "gguf":
        raise InvalidInput(f"{found.path}: is a GGUF already; use: borealis-gguf quantize PRESET -m {found.path}")
    model, types = describe(open_checkpoint(found.path, repo_id=found.repo_id), outtype, model_name=model_name)
    label = outtype.upper() if outtype != "auto" else _main_type(types)
    return lay_out(_output_path(output, _stem(found), label), model, types, label=label)


def plan_quantize(
    source: str | Path,
    presets: Sequence[str],
    output: Path | None = None,
    *,
    imatrix: Path | None = None,
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    model_name: str | None = None,
    revision: str | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> tuple[FilePlan, ...]:
    """Plan one quantized GGUF for each preset, from a checkpoint (folder or Hub id) or a GGUF.

    The options are llama-quantize's: `tensor_types` holds "PATTERN=TYPE", the other types are names ("q8_0"). A
    checkpoint is converted in the same pass; the bytes are those of `plan_convert(…, outtype="f32")` quantized.
    Raises InvalidInput for whatever can be known to go wrong without reading a weight.
    """
    chosen = tuple({preset.name: preset for preset in map(find_preset, presets)}.values())
    if output is not None and len(chosen) > 1 and not output.is_dir():
        raise InvalidInput(f"{output}: {len(chosen)} presets need a folder that exists, not a file name")
    matrix = read_imatrix(imatrix) if imatrix else None
    options = Options(
        has_imatrix=matrix is not None,
        pure=pure,
        tensor_types=tuple(map(parse_tensor_type, tensor_types)),
        output_tensor_type=parse_type(output_tensor_type) if output_tensor_type else None,
        token_embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
        leave_output_tensor=leave_output_tensor,
    )
    found = resolve_source(source, revision=revision, on_progress=on_download)
    model, types = _open(found, model_name)
    if matrix and imatrix:
        _check_imatrix(matrix, imatrix, model)
    return tuple(
        _plan_preset(
            model,
            types,
            preset,
            options,
            path=_output_path(output, _stem(found), preset.name),
            matrix=(imatrix.name, matrix) if imatrix and matrix else None,
            requantize=allow_requantize,
        )
        for preset in chosen
    )


def execute(
    plans: Sequence[FilePlan],
    *,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    allow_nonfinite: bool = False,
    check: bool = True,
    on_report: Callable[[Report], None] | None = None,
) -> tuple[FileResult, ...]:
    """Write all planned files in one pass; see `pipeline.execute.execute`. `jobs` defaults to the cores there are.

    With `check`, each must pass the quick form of `check` before it appears under its name; `on_report` is called
    with what was found. Raises BorealisError when one does not pass.
    """
    with QuickCheck(CODEC, on_report) as quick:
        return pipeline.execute(
            plans,
            CODEC,
            jobs=jobs,
            on_progress=on_progress,
            stop=stop,
            allow_nonfinite=allow_nonfinite,
            verifier=quick if check else None,
        )


def check(
    model: str | Path,
    against: str | Path,
    *,
    text: Path | None = None,
    imatrix: Path | None = None,
    quick: bool = False,
    logits: bool = False,
    revision: str | None = None,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare a GGUF with what it was made from: a checkpoint (a folder, or a Hub id) or another GGUF.

    Looked at are metadata, names and shapes, every weight (with `quick` a few rows of each tensor), token ids of
    built-in lines and of those of the file `text`, special tokens and the chat template. `imatrix` is the one the
    GGUF was made with, if any: then its weights must be exact. `logits` compares those with transformers',
    if that is installed. `on_progress` counts weights.
    Raises InvalidInput when either cannot be read; a GGUF with a fault gives a report that is not `ok`.
    """
    found = resolve_source(against, revision=revision, on_progress=on_download)
    source, _ = _open(found, None)
    matrix = read_imatrix(imatrix) if imatrix else None
    return check_file(
        Path(model),
        source,
        CODEC,
        against=found.repo_id or str(against),
        texts=read_lines(text) if text else (),
        importance={t.name: importance_of(matrix, t.name, t.shape) for t in source.tensors} if matrix else None,
        quick=quick,
        logits=logits,
        jobs=jobs,
        on_progress=on_progress,
    )


def _open(found: Source, model_name: str | None) -> tuple[Model, list[GGMLQuantizationType]]:
    """The model to quantize in its output order, and the type each tensor keeps if no preset touches it."""
    if found.kind == "gguf":
        if model_name:
            raise InvalidInput(f"{found.path}: --model-name needs a checkpoint; a GGUF keeps its name")
        model = _gguf_model(read_gguf(found.path))
        types = [t.source.slice.type for t in model.tensors]
    else:
        checkpoint = open_checkpoint(found.path, repo_id=found.repo_id)
        model, types = describe(checkpoint, "f32", model_name=model_name)
    by_name = dict(zip((t.name for t in model.tensors), zip(model.tensors, types, strict=True), strict=True))
    ordered = [by_name[name] for name in file_order(by_name)]
    return replace(model, tensors=tuple(t for t, _ in ordered)), [type for _, type in ordered]


def _gguf_model(file: GGUFFile) -> Model:
    check_model(file)
    return Model(file.kv, tuple(Tensor(n, TensorSource(s), _squeezed(s.shape)) for n, s in file.tensors.items()))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones: ggml counts no dimension of extent 1 at the end of its own order."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _plan_preset(
    model: Model,
    types: Sequence[GGMLQuantizationType],
    preset: Preset,
    options: Options,
    *,
    path: Path,
    matrix: tuple[str, Imatrix] | None,
    requantize: bool,
) -> FilePlan:
    infos = [(t.name, t.shape, type) for t, type in zip(model.tensors, types, strict=True)]
    choices = choose_types(infos, facts_from_kv(model.kv), preset, options)
    entries = matrix[1].entries if matrix else {}
    importance = [importance_of(matrix[1], t.name, t.shape) if matrix else None for t in model.tensors]
    for tensor, choice, values in zip(model.tensors, choices, importance, strict=True):
        _check_choice(tensor, choice, preset, values is not None, requantize)
    overrides: Sequence[KV] = ()
    if matrix:
        overrides = imatrix_kv(matrix[0], matrix[1].datasets, len(entries), matrix[1].chunk_count)
    file_type = file_type_of(model.kv, types) if preset.ftype is None else preset.ftype
    return lay_out(
        path,
        replace(model, kv=quantized_kv(model.kv, file_type, overrides)),
        [choice.type for choice in choices],
        wanted=[choice.wanted for choice in choices],
        importance=importance,
        label=preset.name,
    )


def _check_choice(tensor: Tensor, choice: Choice, preset: Preset, has_importance: bool, requantize: bool) -> None:
    if choice.requires_imatrix and not has_importance:
        raise InvalidInput(
            f"{preset.name}: {tensor.name} as {choice.type.name} needs an importance matrix; give one with --imatrix"
        )
    source = tensor.source.slice.type
    if source != choice.type and source not in UNQUANTIZED and not requantize:
        raise InvalidInput(
            f"{tensor.source.slice.path}: {tensor.name} is quantized already ({source.name}); start from the BF16 or "
            "F32 file, or accept the loss with --allow-requantize"
        )


def _check_imatrix(matrix: Imatrix, path: Path, model: Model) -> None:
    """A matrix that names no tensor of the model would change nothing. Raises InvalidInput."""
    if not any(t.name in matrix.entries for t in model.tensors):
        raise InvalidInput(f"{path}: names no tensor of this model; it belongs to another one")


def _main_type(types: Sequence[GGMLQuantizationType]) -> str:
    """What an `auto` conversion is called: the type of its matrices."""
    return next((type.name for type in types if type != T.F32), "F32")


def _stem(found: Source) -> str:
    """The model's name in file names: of the repository, the folder, or the GGUF without its type."""
    if found.repo_id:
        return found.repo_id.rpartition("/")[2]
    if found.kind == "checkpoint":
        return found.path.resolve().name
    return TYPE_SUFFIX.sub("", SPLIT_SUFFIX.sub("", found.path.stem))


def _output_path(output: Path | None, stem: str, label: str) -> Path:
    name = f"{stem}-{label}.gguf"
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output
