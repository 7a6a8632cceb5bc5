"""`borealis-gguf quantize`."""

from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from .common_options import OUTPUT_HELP, PATH, execute_plans, lora_options, make_plan, show_results, writing_options


def _list_presets(context: click.Context, _: click.Parameter, listed: bool) -> None:
    """Print every preset, and end the command: no other argument is needed then."""
    if listed and not context.resilient_parsing:
        from . import plan_report

        click.echo(plan_report.presets_text())
        context.exit()


@click.command()
@click.argument("presets", nargs=-1, required=True, metavar="PRESET...")
@click.option("-m", "--model", default=".", metavar="SOURCE", help="A checkpoint folder, a Hub id, or a GGUF file.")
@click.option("-o", "--output", type=PATH, help=OUTPUT_HELP.format("borealis-4b-Q4_K_M.gguf"))
@click.option("--imatrix", type=PATH, help="Importance matrix (GGUF or the legacy format).")
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="A type for tensors by name; repeatable.",
)
@click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option("--leave-output-tensor", is_flag=True, help="Do not quantize output.weight.")
@click.option("--pure", is_flag=True, help="One type for all matrices, no mixture.")
@click.option(
    "--override-kv",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Set a metadata entry; TYPE is int, float, bool or str; repeatable.",
)
@click.option("--allow-requantize", is_flag=True, help="Accept a GGUF that is quantized already; quality suffers.")
@click.option(
    "--mmproj",
    type=click.Choice(["auto", "f16", "bf16", "f32", "q8_0", "none"]),
    default="auto",
    show_default=True,
    help="Type of the vision side's file (mmproj); auto is f16 where the checkpoint can see.",
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_presets, help="List the presets and exit."
)
@click.option("--dry-run", is_flag=True, help="Show the plan: types, fallbacks, sizes, disk and memory. Write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The plan of --dry-run, or the results, as JSON.")
@lora_options
@writing_options
def quantize(
    presets: tuple[str, ...],
    model: str,
    output: Path | None,
    dry_run: bool,
    as_json: bool,
    planning: dict[str, Any],
    execution: dict[str, Any],
    **options: Any,
) -> None:
    """Quantize a checkpoint or a GGUF, to several presets in one pass.

    A checkpoint is converted and quantized at once, without a file in between. One with a vision tower also gets an
    mmproj file, which holds it.

    \b
    Presets:
      floats    F32 F16 BF16 Q8_0
      k-quants  Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S
      simple    Q5_1 Q5_0 Q4_1 Q4_0 Q2_0 Q1_0 MXFP4_MOE
      i-quants  IQ4_NL IQ4_XS IQ3_M IQ3_S IQ3_XS IQ3_XXS IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S
      ternary   TQ2_0 TQ1_0

    \b
    Examples:
      borealis-gguf quantize Q4_K_M
      borealis-gguf quantize Q4_K_M Q5_K_M Q8_0 -m NbAiLab/borealis-4b -o ./gguf
      borealis-gguf quantize Q4_K_M -m hf://NbAiLab/borealis-4b@v1.0 --stream
      borealis-gguf quantize IQ2_M -m borealis-4b-BF16.gguf --imatrix borealis-4b-imatrix.gguf
      borealis-gguf quantize Q4_K_M -m ./borealis-4b --tensor-type attn_v=q8_0 --dry-run
      borealis-gguf quantize --list
      borealis-gguf quantize Q4_K_M -m ./borealis-4b --lora ./safety-lora --lora-scale 0.25
    """
    from .. import plan_quantize
    from . import plan_report

    for preset in presets:
        if "/" in preset or Path(preset).exists():
            raise InvalidInput(f"{preset}: is no preset; give the source with -m: quantize PRESET -m {preset}")

    plans = make_plan(plan_quantize, model, presets, output, execution=execution, **planning, **options)
    if dry_run:
        show_plans = plan_report.plans_json if as_json else plan_report.plans_text
        click.echo(show_plans(plans, execution["jobs"]))
        return
    if not execution["quiet"]:
        plan_report.fallback_advice(plans)
    results = execute_plans(plans, **execution)
    if as_json:
        click.echo(plan_report.results_json(results))
    else:
        show_results(results, execution["quiet"])
