"""`borealis-gguf chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .shared import PATH, ScaledFile

if TYPE_CHECKING:
    from ..runtime.events import Overflow


@click.command()
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message: how to answer.")
@click.option("-c", "--context", type=click.IntRange(1), help="Context in tokens. Default: the model's, 8192 at most.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads. Default: the cores there are.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the likeliest token.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), help="The same seed and lines give the same answers.")
@click.option("--mmproj", type=PATH, help="What images are seen with. Default: mmproj-NAME-*.gguf beside MODEL.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    type=ScaledFile(),
    help="An adapter GGUF (see convert-lora) and its strength; repeatable. Default: 1.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, metal, cuda or cuda:N.")
@click.option("--gpu-layers", default="auto", show_default=True, help="Layers on the GPU: auto or a number.")
@click.option(
    "--overflow",
    type=click.Choice(["error", "roll", "truncate_middle"]),
    default="roll",
    show_default=True,
    help="When the context is full: refuse, forget the oldest turns, or forget all but the first and the latest.",
)
@click.option("--stats", is_flag=True, help="Figures after every answer: tokens, tokens per second, first token.")
@click.option("--no-history", is_flag=True, help="Do not keep typed lines for the next time.")
def chat(
    model: str,
    system: str | None,
    context: int | None,
    threads: int | None,
    temperature: float | None,
    seed: int | None,
    mmproj: Path | None,
    loras: tuple[tuple[Path, float], ...],
    device: str,
    gpu_layers: str,
    overflow: "Overflow",
    stats: bool,
    no_history: bool,
) -> None:
    """Talk with a GGUF model, a file or one on the Hub, in the terminal. /help lists what else can be typed.

    Ctrl-C stops an answer, Ctrl-D leaves. When standard input is no terminal, its lines are the messages and the
    commands; the exit code is 1 if one of them failed.

    \b
    Examples:
      borealis-gguf chat borealis-4b-Q4_K_M.gguf
      borealis-gguf chat NbAiLab/borealis-4b-gguf:Q4_K_M
      borealis-gguf chat borealis-4b-Q4_K_M.gguf --system "Svar på nynorsk." --stats
      borealis-gguf chat borealis-4b-Q4_K_M.gguf --seed 1 < replikkar.txt > svar.txt
    """
    from ..runtime.chat import Chat, greeting
    from ..runtime.chat_commands import COMMANDS
    from ..runtime.events import Options
    from ..runtime.model import load
    from ..runtime.terminal import Screen, open_reader

    screen = Screen(sys.stdout, sys.stderr)
    words = [f"/{name}" for name in COMMANDS]
    reader = open_reader(sys.stdin, words, colour=screen.colour, keep_history=not no_history)
    options = Options(seed=seed, sampling={} if temperature is None else {"temperature": temperature})
    with load(
        model, context=context, threads=threads, device=device, gpu_layers=gpu_layers, loras=loras, mmproj=mmproj,
        isolate=True, on_progress=lambda done: screen.progress(f"Loading {Path(model).name}", done),
    ) as loaded:  # fmt: skip
        screen.clear()
        hello = greeting(loaded)
        if reader.interactive:
            screen.note(hello)
        faults = Chat(
            loaded, reader, screen, system=system, options=options, overflow=overflow, stats=stats,
        ).run()  # fmt: skip
    if faults and not reader.interactive:
        raise SystemExit(1)
