"""`borealis-gguf convert-lora`."""

from pathlib import Path
from typing import Any

import click

from .common_options import OUTPUT_HELP, PATH, execute_plans, make_plan, show_results, writing_options


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
@writing_options
def convert_lora(
    adapter: Path,
    base: str,
    output: Path | None,
    outtype: str,
    planning: dict[str, Any],
    execution: dict[str, Any],
) -> None:
    """Convert a LoRA adapter (PEFT) to a GGUF that llama.cpp and Ollama load beside a model.

    ADAPTER is a folder with adapter_config.json and adapter_model.safetensors. To put an adapter into the weights
    for good, see convert --lora.

    \b
    Examples:
      borealis-gguf convert-lora ./dialekt --base ./borealis-4b
      borealis-gguf convert-lora ./dialekt --base NbAiLab/borealis-4b --stream --outtype f16
    """
    from .. import plan_convert_lora

    plan = make_plan(plan_convert_lora, adapter, base, output, outtype=outtype, execution=execution, **planning)
    show_results(execute_plans([plan], **execution), execution["quiet"])
