"""The library: the same names as the commands. Plans read headers and nothing else; `execute` does the work.

    plans = plan_quantize("NbAiLab/borealis-4b", ["Q4_K_M", "Q8_0"], Path("gguf"))
    results = execute(plans, on_progress=lambda p: show(p.done / p.total))

This is the one module that puts the rooms together: checkpoint, convert, quantize, pipeline and quality.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint.folder import Checkpoint
from .checkpoint.gguf import GGUFFile, read_gguf
from .checkpoint.gguf_naming import MMPROJ, model_stem
from .checkpoint.hub.remote import open_slice
from .checkpoint.imatrix import read_imatrix
from .checkpoint.lora import Adapter, read_adapter, read_adapters
from .checkpoint.source import read_source
from .checkpoint.types import GGMLQuantizationType
from .convert.describe import describe, describe_vision, has_vision
from .convert.lora.adapter_gguf import describe_adapter
from .convert.outtype import resolve_outtype
from .errors import InvalidInput, os_errors_as_ours
from .pipeline import execute as pipeline
from .pipeline.equal_slices import require_equal
from .pipeline.execute import FileResult, Progress
from .pipeline.layout import lay_out
from .pipeline.plan import Codec, FilePlan, GGUFModel
from .pipeline.tasks import is_copy
from .quality.check import check_file, read_lines
from .quality.quick_check import QuickCheck
from .quality.report import Report
from .quantize.choose import TypeOptions, model_shape, require_matches
from .quantize.encoders import ggml, native, self_test
from .quantize.importance import importance_of, warn_of_gaps
from .quantize.metadata import parse_override
from .quantize.presets import find_preset, parse_tensor_type, parse_type
from .quantize_plan import model_to_quantize, plan_preset, require_known_tensor
from .usable_cores import usable_cores

if TYPE_CHECKING:
    from .quantize.encoders.benchmark import EncoderSpeed
    from .runtime.bench.model_speed import ModelSpeed
    from .runtime.llama.devices import Device

T = GGMLQuantizationType
CODEC = Codec(native.encode, ggml.decode, ggml.validate, native.add_product)
LORA_SUFFIX = re.compile(r"[-_]lora$", re.IGNORECASE)
OUTTYPE = (("", "--outtype {}"),)
"""Options that give tensors another type, as `FilePlan.retype` has them."""

MMPROJ_OUTTYPE = "f16"
"""The default type of the vision tower's file: every backend of the runtime has it."""


@os_errors_as_ours()
def plan_convert(
    source: str | Path,
    output: Path | None = None,
    *,
    outtype: str = "auto",
    loras: Sequence[tuple[str | Path, float]] = (),
    model_name: str | None = None,
    card: bool = True,
    revision: str | None = None,
    stream: bool = False,
    on_download: Callable[[int, int], None] | None = None,
) -> FilePlan:
    """Plan the conversion of a checkpoint (a folder, or a Hub id, which is downloaded) to one GGUF.

    `outtype` is auto, f32, f16, bf16 or q8_0; `output` the name of a file, which ends in .gguf, or a folder, or
    None for the working directory;
    `loras` are folders of PEFT adapters, each with a scale, that are merged into the weights on the way;
    without `card`, the model card (README.md) is ignored;
    `on_download(done, total)` is called in bytes while a Hub id is fetched. With `stream`, its weights are not: they
    are read over the network while the file is written.
    Raises InvalidInput for whatever can be known to go wrong without reading a weight.
    """
    adapters = read_adapters(loras)
    checkpoint = read_source(source, revision=revision, stream=stream, use_card=card, on_progress=on_download)
    if isinstance(checkpoint, GGUFFile):
        path = checkpoint.path
        raise InvalidInput(f"{path}: is a GGUF already; use: borealis-gguf quantize PRESET -m {path}")
    model, types = describe(checkpoint, outtype, model_name=model_name, loras=adapters)
    label = outtype.upper() if outtype != "auto" else _main_type(types)
    return lay_out(_output_path(output, checkpoint.stem, label), model, types, label=label, retype=OUTTYPE)


@os_errors_as_ours()
def plan_convert_lora(
    adapter: str | Path,
    base: str | Path,
    output: Path | None = None,
    *,
    outtype: str = "f32",
    model_name: str | None = None,
    card: bool = True,
    revision: str | None = None,
    stream: bool = False,
    on_download: Callable[[int, int], None] | None = None,
) -> FilePlan:
    """Plan the conversion of a PEFT adapter's folder to an adapter GGUF, which llama.cpp loads beside a model.

    `base` is the checkpoint it was trained on (folder or Hub id), of which only headers are read; `outtype` is f32,
    f16, bf16 or auto (the adapter's own); `card` is the adapter's. The other arguments are those of `plan_convert`.
    Raises InvalidInput for whatever can be known to go wrong without reading a weight.
    """
    read = read_adapter(adapter)
    checkpoint = read_source(base, revision=revision, stream=stream, use_card=card, on_progress=on_download)
    if isinstance(checkpoint, GGUFFile):
        raise InvalidInput(f"{checkpoint.path}: a GGUF; --base needs the checkpoint the adapter was trained on")
    model, types = describe_adapter(checkpoint, read, outtype, model_name=model_name)
    # without the type in its name, no llama-server takes it for the model of that type
    path = _output_path(output, LORA_SUFFIX.sub("", read.path.resolve().name), "lora")
    return lay_out(path, model, types, label=types[0].name, retype=OUTTYPE)


@os_errors_as_ours()
def plan_mmproj(
    source: str | Path,
    output: Path | None = None,
    *,
    outtype: str = MMPROJ_OUTTYPE,
    loras: Sequence[tuple[str | Path, float]] = (),
    model_name: str | None = None,
    card: bool = True,
    revision: str | None = None,
    stream: bool = False,
    on_download: Callable[[int, int], None] | None = None,
) -> FilePlan:
    """Plan the mmproj of a checkpoint with a vision tower: one GGUF of that tower and its projector.

    Arguments and errors are those of `plan_convert`.
    """
    checkpoint = read_source(source, revision=revision, stream=stream, use_card=card, on_progress=on_download)
    if isinstance(checkpoint, GGUFFile):
        raise InvalidInput(f"{checkpoint.path}: a GGUF holds no vision side; an mmproj is made from the checkpoint")
    return _plan_mmproj(checkpoint, output, checkpoint.stem, outtype, model_name, read_adapters(loras), OUTTYPE)


def _plan_mmproj(
    checkpoint: Checkpoint,
    output: Path | None,
    stem: str,
    outtype: str,
    model_name: str | None,
    adapters: Sequence[tuple[Adapter, float]],
    retype: tuple[tuple[str, str], ...],
) -> FilePlan:
    model, types = describe_vision(checkpoint, outtype, model_name=model_name, loras=adapters)
    label = resolve_outtype(model.tensors, outtype).upper()
    path = _output_path(output, f"{MMPROJ}{stem}", label)
    return lay_out(path, model, types, label=f"mmproj {label}", retype=retype)


@os_errors_as_ours()
def plan_quantize(
    source: str | Path,
    presets: Sequence[str],
    output: Path | None = None,
    *,
    loras: Sequence[tuple[str | Path, float]] = (),
    imatrix: Path | None = None,
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    override_kv: Sequence[str] = (),
    mmproj: str = "auto",
    model_name: str | None = None,
    card: bool = True,
    revision: str | None = None,
    stream: bool = False,
    on_download: Callable[[int, int], None] | None = None,
) -> tuple[FilePlan, ...]:
    """Plan one quantized GGUF for each preset, from a checkpoint (folder or Hub id) or a GGUF.

    The last plan is that of the mmproj, beside the others: `mmproj` is its outtype, "none" for no such file, or "auto"
    for F16 if the checkpoint has a vision tower.
    The options are llama-quantize's: `tensor_types` holds "PATTERN=TYPE", the other types are names ("q8_0"), and
    `override_kv` metadata entries, "KEY=TYPE:VALUE" with the types int, float, bool and str. A checkpoint is converted
    in the same pass; the bytes are those of `plan_convert(…, outtype="f32")` quantized.
    `loras`, `card`, `stream` and `on_download` are those of `plan_convert`; a GGUF takes no `loras` and has no card.
    Raises InvalidInput for whatever can be known to go wrong without reading a weight.
    """
    chosen = tuple({preset.name: preset for preset in map(find_preset, presets)}.values())
    if output is not None and len(chosen) > 1 and _names_file(output):
        raise InvalidInput(f"{output}: {len(chosen)} presets need a folder, not the name of one file")
    matrix = read_imatrix(imatrix) if imatrix else None
    options = TypeOptions(
        has_imatrix=matrix is not None,
        pure=pure,
        tensor_types=tuple(map(parse_tensor_type, tensor_types)),
        output_tensor_type=parse_type(output_tensor_type) if output_tensor_type else None,
        token_embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
        leave_output_tensor=leave_output_tensor,
    )
    overrides = tuple(map(parse_override, override_kv))
    adapters = read_adapters(loras)
    opened = read_source(source, revision=revision, stream=stream, use_card=card, on_progress=on_download)
    if isinstance(opened, GGUFFile) and not card:
        raise InvalidInput(f"{opened.path}: --no-card needs a checkpoint; a GGUF keeps its metadata")
    model, types = model_to_quantize(opened, model_name, adapters)
    require_matches({t.name: t.shape for t in model.tensors}, model_shape((*model.kv, *overrides)).arch, options)
    if matrix and imatrix:
        require_known_tensor(matrix, imatrix, model)
    plans = [
        plan_preset(
            model,
            types,
            preset,
            options,
            overrides,
            path=_output_path(output, opened.stem, preset.name),
            matrix=(imatrix, matrix) if imatrix and matrix else None,
            requantize=allow_requantize,
        )
        for preset in chosen
    ]
    if matrix:
        planned = [(t.tensor.name, t.type, t.importance is not None) for plan in plans for t in plan.tensors]
        warn_of_gaps(str(imatrix), matrix, planned)
    return (*plans, *_mmproj_beside(opened, output, mmproj, model_name, adapters))


def _mmproj_beside(
    source: Checkpoint | GGUFFile,
    output: Path | None,
    outtype: str,
    model_name: str | None,
    adapters: Sequence[tuple[Adapter, float]],
) -> list[FilePlan]:
    """The mmproj that belongs to the files in `output`, in a list; none where none is wanted."""
    if outtype == "none" or (outtype == "auto" and (isinstance(source, GGUFFile) or not has_vision(source))):
        return []
    if isinstance(source, GGUFFile):
        raise InvalidInput(f"{source.path}: --mmproj {outtype} needs the checkpoint; a GGUF holds no vision side")
    named = output is not None and _names_file(output)
    folder, stem = (output.parent, model_stem(output)) if output and named else (output, source.stem)
    type = MMPROJ_OUTTYPE if outtype == "auto" else outtype
    try:
        return [_plan_mmproj(source, folder, stem, type, model_name, adapters, (("", "--mmproj {}"),))]
    except InvalidInput as error:
        raise InvalidInput(f"{error} (--mmproj none leaves the vision side out)") from error


@os_errors_as_ours()
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
    with what was found. Raises BorealisError when one does not pass. Of streamed sources, what is compared is kept
    as it comes by: no weight is fetched twice.
    A type that our encoders make otherwise than the loaded ggml is made by ggml; one EncoderWarning says so.
    """
    require_equal((pair for plan in plans for pair in plan.model.equal), open_slice, stop)
    with ExitStack() as stack:
        quick = stack.enter_context(QuickCheck(CODEC, on_report, open_slice)) if check else None
        return pipeline.execute(
            plans,
            CODEC,
            jobs=jobs,
            on_progress=on_progress,
            stop=stop,
            allow_nonfinite=allow_nonfinite,
            open_slice=quick.open_slice if quick else open_slice,
            verifier=_Verifiers(quick, stop),
        )


class _Verifiers:
    """Checks files before they get their names: the encoders' self-test, and the quick check if there is one."""

    def __init__(self, quick: QuickCheck | None, stop: threading.Event | None) -> None:
        self.quick = quick
        self.stop = stop
        self.encoder_test: self_test.PendingSelfTest | None = None

    def begin(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Test the encoders that `files` need, before the first of them is used."""
        encoded = {t.type for _, plan in files for t in plan.tensors if not is_copy(t.tensor, t.type)}
        self.encoder_test = self_test.start_self_test(encoded)
        if self.quick:  # last: its thread would keep this one waiting
            self.quick.begin(files)

    def finish(self) -> None:
        """Raises BorealisError for what keeps the files from their names."""
        if self.encoder_test:
            self.encoder_test.finish(self.stop)
        if self.quick:
            self.quick.finish()

    def abort(self) -> None:
        """Have `finish` end soon; the self-test looks at `stop` itself."""
        if self.quick:
            self.quick.abort()


@os_errors_as_ours()
def check(
    model: str | Path,
    against: str | Path,
    *,
    text: Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    imatrix: Path | None = None,
    quick: bool = False,
    logits: bool = False,
    revision: str | None = None,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare a GGUF with what it was made from: a checkpoint (a folder, or a Hub id) or another GGUF.

    Looked at are metadata, names and shapes, every weight (with `quick` a few rows of each tensor), settings and some
    rows by tables that the conversion does not know, token ids of built-in lines and of those of the file `text`,
    special tokens and the chat template. `loras` were merged into the
    GGUF, with these scales. `imatrix` is the one it was made with, if any: then its weights must be exact. `logits`
    compares those with transformers', if that is installed. `on_progress` counts weights.
    Raises InvalidInput when either cannot be read; a GGUF with a fault gives a report that is not `ok`.
    """
    opened = read_source(against, revision=revision, on_progress=on_download)
    header = read_gguf(Path(model))
    source = _expected(header, opened, read_adapters(loras))
    require_equal(source.equal)
    matrix = read_imatrix(imatrix) if imatrix else None
    return check_file(
        header,
        source,
        CODEC,
        against=(isinstance(opened, Checkpoint) and opened.repo_id) or str(against),
        texts=read_lines(text) if text else (),
        importance={t.name: importance_of(matrix, t.name, t.shape) for t in source.tensors} if matrix else None,
        quick=quick,
        logits=logits,
        jobs=jobs,
        on_progress=on_progress,
    )


def _expected(header: GGUFFile, source: Checkpoint | GGUFFile, adapters: Sequence[tuple[Adapter, float]]) -> GGUFModel:
    """What a GGUF should be if it was made from `source`: its text model, or its vision tower."""
    if isinstance(source, GGUFFile):
        return model_to_quantize(source, None, adapters)[0]
    kind = header.value("general.type", "model")
    if kind == "adapter":
        raise InvalidInput(
            f"{header.path}: an adapter, which is not compared with a checkpoint; check a model it is merged into"
        )
    if kind == "mmproj":
        return describe_vision(source, "f32", loras=adapters)[0]
    return describe(source, "f32", loras=adapters)[0]


def _main_type(types: Sequence[GGMLQuantizationType]) -> str:
    """What an `auto` conversion is called: the type of its matrices."""
    return next((type.name for type in types if type != T.F32), "F32")


def _output_path(output: Path | None, stem: str, label: str) -> Path:
    """The path of an output: in the folder `output`, unless that is the name of a GGUF."""
    name = f"{stem}-{label}.gguf"
    if output is None:
        return Path(name)
    return output if _names_file(output) else output / name


def _names_file(output: Path) -> bool:
    return output.suffix.lower() == ".gguf" and not output.is_dir()


# What the other commands call: estimates, headers, devices, benchmarks.


def memory_needed(plans: Sequence[FilePlan], jobs: int | None = None) -> int:
    """Bytes of the buffers with which `execute` writes `plans`."""
    from .pipeline.memory_estimate import memory_needed

    return memory_needed(plans, jobs or usable_cores())


@os_errors_as_ours()
def inspect(file: str | Path) -> GGUFFile:
    """The header of a GGUF: metadata and tensors. Raises InvalidInput for any other file."""
    return read_gguf(Path(file))


def devices() -> "tuple[Device, ...]":
    """What models can run on here: the CPU first. Raises BorealisError when llama.cpp cannot be used."""
    from .runtime.llama.devices import devices

    return devices()


def bench_encoders(types: Sequence[str] = (), *, source: str = "f32", **settings: Any) -> "Iterator[EncoderSpeed]":
    """How fast weights of type `source` are encoded to each of `types`, or to the common ones.

    settings: `seconds` of each measurement, `repetitions`. Raises InvalidInput for an unknown type.
    """
    from .quantize.encoders.benchmark import BENCHED, bench_encoders

    chosen = tuple(map(parse_type, types)) or BENCHED
    return bench_encoders(chosen, source=parse_type(source), **settings)


def bench_run(model: str | Path, **settings: Any) -> "Iterator[ModelSpeed]":
    """How fast a model runs on this machine; the settings are those of `runtime.bench.model_speed.bench_run`."""
    from .runtime.bench.model_speed import bench_run

    return bench_run(model, **settings)
