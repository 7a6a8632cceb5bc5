"""`borealis-gguf bench`."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..size_format import format_nbytes
from .common_options import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..quantize.encoders.benchmark import EncoderSpeed
    from ..runtime.bench.model_speed import ModelSpeed


class Counts(click.ParamType):
    """Numbers with commas between them."""

    name = "N[,N]..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(map(int, value.split(",")))
        except ValueError:
            counts = ()
        if not counts or not all(1 <= count <= 256 for count in counts):
            self.fail(f"{value!r} is not one or more numbers from 1 to 256 with commas between them", param, ctx)
        return counts


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.argument("types", nargs=-1, metavar="[TYPE]...")
@click.option("--source", type=click.Choice(["f32", "f16", "bf16"]), default="f32", help="Type of the rows read.")
@click.option("--seconds", type=click.FloatRange(0.001), default=0.2, show_default=True, help="Per measurement.")
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True, help="The median counts.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def encoders(types: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """How fast weights are encoded: the package's kernels against ggml's encoders, in turn, bytes compared.

    One thread; in million weights per second. Exits with 1 when any bytes differ.

    \b
    Examples:
      borealis-gguf bench encoders
      borealis-gguf bench encoders Q4_K Q6_K --json
    """
    from .. import api

    measured, speeds = api.bench_encoders(types, **settings), []
    if not as_json:
        click.echo(_encoder_row(ENCODER_COLUMNS))
    for speed in measured:
        speeds.append(speed)
        if not as_json:
            click.echo(_encoder_row(_encoder_cells(speed)))
    if as_json:
        click.echo(_encoders_json(speeds))
    if not all(speed.equal for speed in speeds):
        raise SystemExit(1)


ENCODER_COLUMNS = ("Type", "Importance", "Kernels", "ggml M/s", "ours M/s", "Times", "Bytes")


def _encoder_row(cells: "Sequence[str]") -> str:
    """A line of the encoders' table, which appears as it is measured."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (8, 10, 8, 9, 9, 6, 9), strict=True)).rstrip()


def _encoder_cells(speed: "EncoderSpeed") -> "Sequence[str]":
    return (
        speed.type.name,
        "yes" if speed.importance else "no",
        speed.isa or "none",
        f"{speed.ggml / 1e6:.1f}",
        f"{speed.native / 1e6:.1f}" if speed.native else "",
        f"{speed.ratio:.1f}",
        "equal" if speed.equal else "DIFFERENT",
    )


def _encoders_json(speeds: "Sequence[EncoderSpeed]") -> str:
    rows = [
        {
            "type": s.type.name,
            "importance": s.importance,
            "kernels": s.isa,
            "ggml": s.ggml,
            "ours": s.native,
            "ratio": s.ratio,
            "equal": s.equal,
        }
        for s in speeds
    ]
    return json.dumps({"weights_per_second": rows})


@bench.command()
@click.argument("model")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="Length of the prompts.")
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Length of the answers.")
@click.option("--parallel", type=Counts(), default="1,8", show_default=True, help="How many answers at once.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="The medians count.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads. Default: the cores there are.")
@click.option("-c", "--context", type=click.IntRange(1), help="Context of each answer. Default: what is needed.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, metal, cuda or cuda:N.")
@click.option("--gpu-layers", default="auto", show_default=True, help="Layers on the GPU: auto or a number.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def run(model: str, as_json: bool, **settings: Any) -> None:
    """How fast a GGUF model reads and writes here, alone and for several at once, and what memory it takes.

    Prompts are random tokens, answers are drawn as the model's authors recommend and never end early. The first token
    comes after a prompt never seen before, and after one of which all but the last 16 tokens are known already.

    \b
    Examples:
      borealis-gguf bench run borealis-4b-Q4_K_M.gguf
      borealis-gguf bench run borealis-4b-Q4_K_M.gguf --parallel 1,4,16 --tokens 256 --json
    """
    from .. import api
    from ..runtime.terminal.terminal_io import Screen

    screen = Screen(sys.stdout, sys.stderr)
    measured = []
    for speed in api.bench_run(model, on_progress=screen.progress, **settings):
        screen.clear()
        screen.note(f"{speed.parallel} at once: {speed.placement}")
        measured.append(speed)
    if as_json:
        click.echo(json.dumps([asdict(speed) for speed in measured], indent=1))
        return
    click.echo(
        table(("At once", "Prefill", "Decode", "First token", "Prefix cached", "Memory", "Loading"), _rows(measured))
    )


def _rows(speeds: "Sequence[ModelSpeed]") -> "Iterator[tuple[str, ...]]":
    for s in speeds:
        rates = f"{s.prefill:.1f} t/s", f"{s.decode:.1f} t/s"
        yield (
            str(s.parallel), *rates, f"{s.time_to_first_token:.3f} s", f"{s.time_to_first_token_cached:.3f} s",
            format_nbytes(s.peak_memory), f"{s.loading:.2f} s",
        )  # fmt: skip
