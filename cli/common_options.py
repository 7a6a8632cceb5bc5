"""Options that several commands share, and how results are shown: data on standard output, the rest on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ..size_format import format_nbytes

if TYPE_CHECKING:
    from .. import FilePlan, FileResult, Options, Progress, Report

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PATH = click.Path(path_type=Path)
OUTPUT_HELP = (
    "A file name that ends in .gguf, or a folder, which is made. Default: where you stand, and a name like {}."
)


class ScaledFile(click.ParamType):
    """FILE or FILE:SCALE; the colon of a Windows drive is no scale's."""

    name = "FILE[:SCALE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, float]:
        if isinstance(value, tuple):
            return value
        file, colon, scale = value.rpartition(":")
        is_drive = len(file) == 1 and file.isalpha()
        if not colon or is_drive or Path(value).exists():
            return Path(value), 1.0
        try:
            return Path(file), float(scale)
        except ValueError:
            return Path(value), 1.0


def _with_options(command: F, *options: Callable[[Any], Any]) -> F:
    """`command` with `options` in this order in its help."""
    for option in reversed(options):
        command = option(command)
    return command


LOADING = ("context", "threads", "device", "gpu_layers", "mmproj", "loras")


def loading_options(command: F) -> F:
    """Options of commands that load a model; the command gets them as `loading`, arguments of `load`."""

    @wraps(command)
    def collected(*args: Any, **given: Any) -> Any:
        return command(*args, loading={name: given.pop(name) for name in LOADING}, **given)

    return _with_options(
        cast(F, collected),
        click.option("-c", "--context", type=click.IntRange(1), help="In tokens. Default: the model's, 8192 at most."),
        click.option("-t", "--threads", type=click.IntRange(1), help="Threads. Default: the cores there are."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, metal, cuda, cuda:N or vulkan:N."),
        click.option("--gpu-layers", default="auto", show_default=True, help="Layers on the GPU: auto or a number."),
        click.option(
            "--mmproj", type=PATH, help="What images are seen with. Default: mmproj-NAME-*.gguf beside MODEL."
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            type=ScaledFile(),
            help="An adapter GGUF (see convert-lora) and its strength; repeatable. Default: 1.",
        ),
    )


def answer_options(**given: Any) -> "Options":
    """`Options` of an answer, where the temperature is an option of its own."""
    from .. import Options

    temperature = given.pop("temperature")
    return Options(sampling={} if temperature is None else {"temperature": temperature}, **given)


def lora_options(command: F) -> F:
    """Options of commands that can merge adapters; the command gets them as `loras`: folders with their scales."""

    @wraps(command)
    def collected(*args: Any, lora_folders: Sequence[Path], lora_scales: Sequence[float], **given: Any) -> Any:
        return command(*args, loras=loras(lora_folders, lora_scales), **given)

    return _with_options(
        cast(F, collected),
        click.option(
            "--lora",
            "lora_folders",
            multiple=True,
            type=PATH,
            metavar="DIR",
            help="Merge a PEFT adapter into the weights; repeatable.",
        ),
        click.option(
            "--lora-scale",
            "lora_scales",
            multiple=True,
            type=float,
            metavar="S",
            help="Strength of each --lora, in their order. Borealis has its safety prompt merged at 0.25. Default: 1.",
        ),
    )


def loras(folders: Sequence[Path], scales: Sequence[float]) -> list[tuple[Path, float]]:
    """Adapters with their scales: none given means 1 for all, else one for each."""
    if scales and len(scales) != len(folders):
        raise click.UsageError(f"{len(folders)} --lora and {len(scales)} --lora-scale; give one scale for each adapter")
    return list(zip(folders, scales or [1.0] * len(folders), strict=True))


def writing_options(command: F) -> F:
    """Options of commands that write GGUF files from a SOURCE, which may be a model on the Hub.

    The command gets them as `planning`, arguments of api's planners, and `execution`, arguments of `execute_plans`.
    """

    @wraps(command)
    def collected(*args: Any, stream: bool, model_name: str | None, no_card: bool, no_check: bool, **given: Any) -> Any:
        planning = {"stream": stream, "model_name": model_name, "card": not no_card}
        execution = {name: given.pop(name) for name in ("jobs", "allow_nonfinite", "quiet")} | {"check": not no_check}
        return command(*args, planning=planning, execution=execution, **given)

    return _with_options(
        cast(F, collected),
        click.option(
            "--stream",
            is_flag=True,
            help="Read a Hub model's weights over the network as they are needed and store none of them. Its small "
            "files (config, tokenizer) lie in a temporary folder until the end.",
        ),
        click.option(
            "--model-name",
            metavar="NAME",
            help="The name in the metadata (general.name), instead of the checkpoint's own.",
        ),
        click.option("--no-card", is_flag=True, help="Ignore the model card (README.md): write none of its metadata."),
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(1),
            help="Threads that read, encode and write; the quick check and the disk need a little of another core. "
            "Default: the cores there are.",
        ),
        click.option("--allow-nonfinite", is_flag=True, help="Keep weights that are NaN or Inf instead of refusing."),
        click.option("--no-check", is_flag=True, help="Skip the quick check that files must pass to get their names."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    )


def make_plan(planner: Callable[..., T], *args: Any, execution: Mapping[str, Any], **options: Any) -> T:
    """What `planner`, one of api's, returns; a download shows its progress."""
    with _progress_bar(execution["quiet"], "Fetching") as on_download:
        return planner(*args, on_download=on_download, **options)


def execute_plans(plans: "Sequence[FilePlan]", *, quiet: bool, **execution: Any) -> "Sequence[FileResult]":
    """Write the files with a progress bar, and show notes of their quick check."""
    from .. import execute

    with progress_bar(quiet) as on_progress:
        return execute(plans, on_progress=on_progress, on_report=None if quiet else _show_notes, **execution)


def _show_notes(report: "Report") -> None:
    """Show, on stderr, what a quick check could not look at; what it found wrong is an error of its own."""
    for note in report.notes:
        click.echo(f"{report.path.name}: {note.line}", err=True)


@contextmanager
def progress_bar(quiet: bool, unit: str = "B") -> "Iterator[Callable[[Progress], None] | None]":
    """A bar with rate and time left on stderr; None when nobody watches."""
    with _progress_bar(quiet, unit=unit) as show:
        yield (lambda progress: show(progress.done, progress.total)) if show else None


@contextmanager
def _progress_bar(
    quiet: bool, label: str | None = None, unit: str = "B"
) -> Iterator[Callable[[int, int], None] | None]:
    """The same for numbers; without a first call of what it yields the bar never appears."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bar = tqdm(desc=label, unit=unit, unit_scale=True, unit_divisor=1000, dynamic_ncols=True, leave=False)
                bars.append(stack.enter_context(bar))
            bars[0].total = total
            bars[0].update(done - bars[0].n)
            if done == total:
                bars[0].refresh()

        yield show


def show_results(results: "Iterable[FileResult]", quiet: bool) -> None:
    """A table of the files that were written."""
    if quiet:
        return
    rows = [
        (str(r.path), r.label, format_nbytes(r.size), f"{r.bits_per_weight:.2f}", f"{r.seconds:.1f} s") for r in results
    ]
    click.echo(table(("File", "Preset", "Size", "Bits/weight", "Time"), rows))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
