"""`borealis-gguf convert`."""

from pathlib import Path

import click

from .common_options import (
    OUTPUT_HELP,
    PATH,
    download_bar,
    lora_options,
    loras,
    progress_bar,
    show_notes,
    show_results,
    source_options,
    work_options,
)


@click.command()
@click.argument("source", default=".")
@click.option("-o", "--output", type=PATH, help=OUTPUT_HELP.format("borealis-4b-BF16.gguf"))
@click.option(
    "--outtype",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]),
    help="Type of the matrices; auto keeps the checkpoint's own. Default: auto; f16 with --mmproj.",
)
@click.option(
    "--mmproj", is_flag=True, help="Write the side that sees (mmproj-NAME-F16.gguf) instead of the text model."
)
@lora_options
@source_options
@work_options
def convert(
    source: str,
    output: Path | None,
    outtype: str | None,
    mmproj: bool,
    lora_folders: tuple[Path, ...],
    lora_scales: tuple[float, ...],
    stream: bool,
    model_name: str | None,
    no_card: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    no_check: bool,
    quiet: bool,
) -> None:
    """Convert a checkpoint to GGUF.

    SOURCE is a checkpoint folder (safetensors) or a Hub id; by default the folder you stand in.

    \b
    Examples:
      borealis-gguf convert
      borealis-gguf convert ./borealis-1b -o borealis-1b-F16.gguf --outtype f16
      borealis-gguf convert NbAiLab/borealis-4b -o ./gguf --stream
      borealis-gguf convert ./borealis-4b --lora ./safety-lora --lora-scale 0.25
      borealis-gguf convert NbAiLab/borealis-4b -o ./gguf --mmproj
    """
    from .. import api

    merged = loras(lora_folders, lora_scales)
    plan_it, default = (api.plan_mmproj, api.MMPROJ_OUTTYPE) if mmproj else (api.plan_convert, "auto")
    with download_bar(quiet) as on_download:
        plan = plan_it(
            source,
            output,
            outtype=outtype or default,
            loras=merged,
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
