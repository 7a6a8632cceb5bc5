"""`borealis-gguf inspect`."""

from pathlib import Path

import click

from .common_options import PATH


@click.command()
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def inspect(file: Path, as_json: bool) -> None:
    """Show the metadata and the tensors of a GGUF file.

    \b
    Examples:
      borealis-gguf inspect borealis-4b-Q4_K_M.gguf
      borealis-gguf inspect borealis-4b-Q4_K_M.gguf --json
    """
    from .. import api
    from . import plan_report

    gguf = api.inspect(file)
    click.echo(plan_report.gguf_json(gguf) if as_json else plan_report.gguf_text(gguf))
