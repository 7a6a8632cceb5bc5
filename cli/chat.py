"""`borealis-gguf chat`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from .common_options import answer_options, loading_options


@click.command()
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message: how to answer.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the likeliest token.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), help="The same seed and lines give the same answers.")
@loading_options
@click.option(
    "--overflow",
    type=click.Choice(["error", "roll", "truncate_middle"]),
    default="roll",
    show_default=True,
    help="When the context is full: refuse, forget the oldest turns, or forget all but the first and the latest.",
)
@click.option("--stats", is_flag=True, help="Figures after every answer: tokens, tokens per second, first token.")
@click.option("--no-history", is_flag=True, help="Do not keep typed lines for the next time.")
def chat(model: str, no_history: bool, loading: dict[str, Any], **chatting: Any) -> None:
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
    from .. import load
    from ..runtime.terminal.chat_commands import COMMANDS
    from ..runtime.terminal.chat_loop import ChatLoop, greeting
    from ..runtime.terminal.terminal_io import Screen, open_reader

    screen = Screen(sys.stdout, sys.stderr)
    words = [f"/{name}" for name in COMMANDS]
    reader = open_reader(sys.stdin, words, colour=screen.colour, keep_history=not no_history)
    options = answer_options(seed=chatting.pop("seed"), temperature=chatting.pop("temperature"))
    show_progress = partial(screen.progress, f"Loading {Path(model).name}")
    with load(model, isolate=True, on_progress=show_progress, **loading) as loaded:
        screen.clear()
        hello = greeting(loaded)
        if reader.interactive:
            screen.note(hello)
        errors = ChatLoop(loaded, reader, screen, options=options, **chatting).run()
    if errors and not reader.interactive:
        raise SystemExit(1)
