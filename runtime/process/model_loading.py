"""Loads a model into this process: checks its files, chooses its placement, creates the engine."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.gguf import GGUFFile, read_gguf
from ...checkpoint.gguf_naming import mmproj_beside
from ...checkpoint.gguf_validation import check_tokens_differ
from ...errors import BorealisError, InvalidInput
from ..fitting.cpu_probe import extra_buffers_work
from ..fitting.placement import Placement, choose_placement, model_params
from ..lora_adapters import checked_loras
from ..prompting.chat_template import chat_template_of
from ..prompting.sampling_settings import override_sampling, sampling_from_metadata
from ..prompting.template_renderer import TemplateRenderer
from .in_process_model import MAX_SEED, InProcessModel, checked_seed

if TYPE_CHECKING:
    from ..llama.engine import Engine
    from ..llama.loading import LoadProgress


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The arguments of `load` that both backends need, as JSON can hold them."""

    device: str
    gpu_layers: int | str
    context: int | None
    parallel: int
    threads: int
    seed: int | None
    sampling: Mapping[str, float]
    loras: Sequence[tuple[str, float]]
    mmproj: str | None
    extra_buffers: bool | None
    max_queue: int | None
    batch_invariant: bool | None


def load_in_process(path: Path, options: LoadOptions, on_progress: "LoadProgress | None" = None) -> InProcessModel:
    """Load the model file `path`. Raises what `load` raises."""
    header = read_gguf(path)
    if header.value("general.type", "model") != "model" or header.value("general.architecture") == "clip":
        raise InvalidInput(f"{path}: not a language model but a {header.value('general.type', 'vision part')}")
    check_tokens_differ(header)
    default_sampling = override_sampling(sampling_from_metadata(header), options.sampling)
    adapters = checked_loras(header, options.loras)
    if options.threads < 1:
        raise InvalidInput(f"threads: {options.threads} is not 1 or more")
    seed = None if options.seed is None else checked_seed(options.seed)
    extra_buffers = extra_buffers_work() if options.extra_buffers is None else options.extra_buffers
    mmproj = Path(options.mmproj) if options.mmproj else mmproj_beside(path)
    placement = _place(header, mmproj, options, extra_buffers, [path for path, _ in adapters])
    on_gpu = placement.n_gpu_layers > 0
    several_on_cpu = options.parallel > 1 and not on_gpu
    template = chat_template_of(header)
    with ExitStack() as stack:
        # Its process starts while the weights are loaded.
        renderer = stack.enter_context(TemplateRenderer(template)) if template else None
        engine = _engine_class()(
            path,
            context=placement.context,
            threads=options.threads,
            extra_buffers=extra_buffers,
            parallel=options.parallel,
            batch_invariant=several_on_cpu if options.batch_invariant is None else options.batch_invariant,
            model_params=model_params(placement),
            vision_device=placement.name if on_gpu else None,
            loras=adapters,
            on_progress=on_progress,
        )
        stack.callback(engine.close)
        model = InProcessModel(
            engine,
            renderer,
            default_sampling,
            lambda: secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
            mmproj=mmproj,
            loras=adapters,
            max_queue=options.max_queue,
            placement=placement.describe(),
        )
        stack.pop_all()
    return model


def _place(
    header: GGUFFile, mmproj: Path | None, options: LoadOptions, extra_buffers: bool, adapters: Sequence[Path]
) -> Placement:
    """`choose_placement` with the devices that llama.cpp finds. Raises InvalidInput when the model fits on none."""
    try:
        from ..llama.devices import devices
        from ..llama.repack import repacked_nbytes
        from ..llama.vision import read_mmproj
    except (ImportError, OSError, RuntimeError) as error:
        raise _not_loadable(error) from error
    return choose_placement(
        header,
        device=options.device,
        gpu_layers=options.gpu_layers,
        context=options.context,
        parallel=options.parallel,
        devices=devices(),
        mmproj=read_mmproj(mmproj) if mmproj is not None else None,
        outputs=options.parallel,
        repack=repacked_nbytes if extra_buffers else None,
        adapters=[read_gguf(adapter) for adapter in adapters],
    )


def _engine_class() -> "type[Engine]":
    """Imports llama.cpp's libraries, after the probe found that they work."""
    try:
        from ..llama.engine import Engine
    except (ImportError, OSError, RuntimeError) as error:
        raise _not_loadable(error) from error
    return Engine


def _not_loadable(error: Exception) -> BorealisError:
    return BorealisError(f"llama-cpp-python cannot be loaded ({error}); reinstall it")
