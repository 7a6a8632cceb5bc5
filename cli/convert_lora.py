"""`borealis-gguf convert-lora`."""

from pathlib import Path

import click

from .common_options import (
    OUTPUT_HELP,
    PATH,
    download_bar,
    progress_bar,
    show_notes,
    show_results,
    source_options,
    work_options,
)


@click.command("convert-lora")
@click.argument("adapter", type=PATH)
@click.option("--base", required=True, metavar="SOURCE", help="The checkpoint it was trained on: a folder or a Hub id.")
@click.option("-o", "--output", type=PATH, help=OUTPUT_HELP.format("dialekt-lora.gguf"))
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "auto"]),
    default="f32",
    show_default=True,
    help="Type of the matrices; auto keeps the adapter's own.",
)
@source_options
@work_options
def convert_lora(
    adapter: Path,
    base: str,
    output: Path | None,
    outtype: str,
    stream: bool,
    model_name: str | None,
    no_card: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    no_check: bool,
    quiet: bool,
) -> None:
    """Convert a LoRA adapter (PEFT) to a GGUF that llama.cpp and Ollama load beside a model.

    ADAPTER is a folder with adapter_config.json and adapter_model.safetensors. To put an adapter into the weights
    for good, see convert --lora.

    \b
    Examples:
      borealis-gguf convert-lora ./dialekt --base ./borealis-4b
      borealis-gguf convert-lora ./dialekt --base NbAiLab/borealis-4b --stream --outtype f16
    """
    from .. import api

    with download_bar(quiet) as on_download:
        plan = api.plan_convert_lora(
            adapter,
            base,
            output,
            outtype=outtype,
            model_name=model_name,
            card=not no_card,
            stream=stream,
            on_download=on_download,
        )
    with progress_bar(quiet) as on_progress:
        results = api.execute(
            [plan],
            jobs=jobs,
            on_progress=on_progress,
            allow_nonfinite=allow_nonfinite,
            check=not no_check,
            on_report=None if quiet else show_notes,
        )
    show_results(results, quiet)
