"""Options that several commands share, and how results are shown: data on standard output, the rest on stderr."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pipeline.execute import FileResult, Progress
    from ..quality.report import Report

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


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


LOADING = ("context", "threads", "device", "gpu_layers", "mmproj", "loras")


def loading_options(command: F) -> F:
    """Options of commands that load a model; the command gets them as `loading`, arguments of `load`."""

    @wraps(command)
    def collected(*args: Any, **given: Any) -> Any:
        return command(*args, loading={name: given.pop(name) for name in LOADING}, **given)

    for option in (
        click.option(
            "--lora",
            "loras",
            multiple=True,
            type=ScaledFile(),
            help="An adapter GGUF (see convert-lora) and its strength; repeatable. Default: 1.",
        ),
        click.option(
            "--mmproj", type=PATH, help="What images are seen with. Default: mmproj-NAME-*.gguf beside MODEL."
        ),
        click.option("--gpu-layers", default="auto", show_default=True, help="Layers on the GPU: auto or a number."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, metal, cuda, cuda:N or vulkan:N."),
        click.option("-t", "--threads", type=click.IntRange(1), help="Threads. Default: the cores there are."),
        click.option("-c", "--context", type=click.IntRange(1), help="In tokens. Default: the model's, 8192 at most."),
    ):
        collected = option(collected)
    return cast(F, collected)


OUTPUT_HELP = "A file name, or an existing folder. Default: the folder you stand in, and a name like {}."


def lora_options(command: F) -> F:
    """Options of commands that can merge adapters; `loras` turns their values into what the library takes."""
    folders = click.option(
        "--lora",
        "lora_folders",
        multiple=True,
        type=PATH,
        metavar="DIR",
        help="Merge a PEFT adapter into the weights; repeatable.",
    )
    scales = click.option(
        "--lora-scale",
        "lora_scales",
        multiple=True,
        type=float,
        metavar="S",
        help="Strength of each --lora, in their order. Borealis has its safety prompt merged at 0.25. Default: 1.",
    )
    return folders(scales(command))


def loras(folders: Sequence[Path], scales: Sequence[float]) -> list[tuple[Path, float]]:
    """Adapters with their scales: none given means 1 for all, else one for each."""
    if scales and len(scales) != len(folders):
        raise click.UsageError(f"{len(folders)} --lora and {len(scales)} --lora-scale; give one scale for each adapter")
    return list(zip(folders, scales or [1.0] * len(folders), strict=True))


def work_options(command: F) -> F:
    """Options of commands that write GGUF files."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("--no-check", is_flag=True, help="Skip the quick check that files must pass to get their names."),
        click.option("--allow-nonfinite", is_flag=True, help="Keep weights that are NaN or Inf instead of refusing."),
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(1),
            help="Threads that read, encode and write; the quick check and the disk need a little of another core. "
            "Default: the cores there are.",
        ),
        click.option("--no-card", is_flag=True, help="Ignore the model card (README.md): write none of its metadata."),
        click.option("--model-name", metavar="NAME", help="general.name, where the checkpoint does not tell it well."),
    ):
        command = option(command)
    return command


def source_options(command: F) -> F:
    """Options of commands whose SOURCE may be a model on the Hub."""
    return click.option(
        "--stream",
        is_flag=True,
        help="Read a Hub model's weights over the network as they are needed and store none of them. Its small files "
        "(config, tokenizer) lie in a temporary folder until the end.",
    )(command)


def show_notes(report: "Report") -> None:
    """Tell, on stderr, what a quick check could not look at; what it found wrong is an error of its own."""
    for note in report.notes:
        click.echo(f"{report.path.name}: {note.line}", err=True)


@contextmanager
def progress_bar(quiet: bool, unit: str = "B") -> "Iterator[Callable[[Progress], None] | None]":
    """A bar with rate and time left on stderr; None when nobody watches."""
    with _bar(quiet, unit=unit) as show:
        yield (lambda progress: show(progress.done, progress.total)) if show else None


@contextmanager
def download_bar(quiet: bool) -> "Iterator[Callable[[int, int], None] | None]":
    """The same for what is fetched from the Hub before work begins; without a download it never appears."""
    with _bar(quiet, "Fetching") as show:
        yield show


@contextmanager
def _bar(quiet: bool, what: str | None = None, unit: str = "B") -> "Iterator[Callable[[int, int], None] | None]":
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bar = tqdm(desc=what, unit=unit, unit_scale=True, unit_divisor=1000, dynamic_ncols=True, leave=False)
                bars.append(stack.enter_context(bar))
            bars[0].total = total
            bars[0].update(done - bars[0].n)
            if done == total:
                bars[0].refresh()

        yield show


def show_results(results: "Iterable[FileResult]", quiet: bool) -> None:
    if quiet:
        return
    rows = [(str(r.path), r.label, size(r.size), f"{r.bits_per_weight:.2f}", f"{r.seconds:.1f} s") for r in results]
    click.echo(table(("File", "Preset", "Size", "Bits/weight", "Time"), rows))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def size(nbytes: int) -> str:
    """Decimal units, as file managers and the Hub show them."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
