"""`borealis-gguf convert`."""

from pathlib import Path
from typing import Any

import click

from .common_options import OUTPUT_HELP, PATH, execute_plans, lora_options, make_plan, show_results, writing_options


@click.command()
@click.argument("source", default=".")
@click.option("-o", "--output", type=PATH, help=OUTPUT_HELP.format("borealis-4b-BF16.gguf"))
@click.option(
    "--outtype",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]),
    help="Type of the matrices; auto keeps the checkpoint's own. Default: auto; f16 with --mmproj.",
)
@click.option("--mmproj", is_flag=True, help="Write the vision tower (mmproj-NAME-F16.gguf) instead of the text model.")
@lora_options
@writing_options
def convert(
    source: str,
    output: Path | None,
    outtype: str | None,
    mmproj: bool,
    loras: list[tuple[Path, float]],
    planning: dict[str, Any],
    execution: dict[str, Any],
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

    planner, default = (api.plan_mmproj, api.MMPROJ_OUTTYPE) if mmproj else (api.plan_convert, "auto")
    plan = make_plan(planner, source, output, outtype=outtype or default, loras=loras, execution=execution, **planning)
    show_results(execute_plans([plan], **execution), execution["quiet"])
