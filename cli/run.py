"""`borealis-gguf run`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .common_options import PATH, answer_options, loading_options, show


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option(
    "--system", metavar="TEXT", help="System message, placed before the prompt as the model's template has it."
)
@click.option("--image", "images", type=PATH, multiple=True, help="A PNG, JPEG or WebP to ask about; repeatable.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Longest answer. Default: what the context holds.")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same answer.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the likeliest token.")
@click.option("-q", "--quiet", is_flag=True, help="Print the answer, and errors, only.")
@loading_options
def run(
    model: str,
    prompt: str | None,
    system: str | None,
    images: tuple[Path, ...],
    raw: bool,
    quiet: bool,
    loading: dict[str, Any],
    **answering: Any,
) -> None:
    """Ask a GGUF model, a file or one on the Hub, with its own chat template; the answer streams.

    Without PROMPT, standard input is read. Where the model runs, and why, is told on standard error.

    \b
    Examples:
      borealis-gguf run borealis-4b-Q4_K_M.gguf "Skriv eit dikt om nordlyset."
      borealis-gguf run borealis-4b-Q4_K_M.gguf < notat.txt
      borealis-gguf run borealis-4b-Q4_K_M.gguf "Kva ser du?" --image fjord.jpg
      borealis-gguf run borealis-4b-Q4_K_M.gguf "Hei" --system "Svar på nynorsk." --temperature 0
      borealis-gguf run borealis-4b-Q4_K_M.gguf "Hei" --lora dialekt-lora.gguf:0.5
    """
    from .. import Text, load
    from ..terminal_escape import escape_terminal

    for name, given in (("--system", system is not None), ("--image", images)):
        if given and raw:
            raise click.UsageError(f"{name} needs the chat template, which --raw leaves out")
    prompt = _read_prompt() if prompt is None else prompt
    if not prompt:
        raise click.UsageError("no prompt: give one after MODEL, or on standard input")
    options = answer_options(**answering)
    escape = escape_terminal if sys.stdout.isatty() else str
    with load(model, isolate=True, **loading) as loaded:
        answer = loaded.complete(prompt, options) if raw else loaded.chat(_messages(prompt, system, images), options)
        if not quiet:
            show(loaded.placement, err=True)
        for event in answer:
            if isinstance(event, Text):
                click.echo(escape(event.text), nl=False, color=True)  # else it would change what goes to a file
    click.echo()


def _read_prompt() -> str:
    """All of standard input."""
    if sys.stdin.isatty():
        click.echo("Reading the prompt from standard input; end it with Ctrl-D (Ctrl-Z on Windows).", err=True)
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _messages(prompt: str, system: str | None, images: Sequence[Path]) -> list[dict[str, Any]]:
    """The conversation: a system message if there is one, and the prompt with its images."""
    parts = [{"type": "image", "path": str(image.absolute())} for image in images]
    content = [*parts, {"type": "text", "text": prompt}] if parts else prompt
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": content}]
