"""`borealis-gguf modelfile`."""

import os
import re
import shlex
from pathlib import Path

import click

from .common_options import PATH, show


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, help="Where to write it. Default: standard output.")
@click.option("--mmproj", default="auto", metavar="FILE|none", help="Vision file. Default: the one beside the model.")
@click.option("--system", metavar="TEXT", help="A system message for every conversation.")
@click.option("--num-ctx", type=click.IntRange(1), default=8192, show_default=True, help="Context in tokens.")
def modelfile(model: Path, output: Path | None, mmproj: str, system: str | None, num_ctx: int) -> None:
    """Write an Ollama Modelfile for a Gemma 3 GGUF.

    \b
    Examples:
      borealis-gguf modelfile borealis-4b-Q4_K_M.gguf -o Modelfile
      borealis-gguf modelfile borealis-4b-Q4_K_M.gguf --mmproj none -o Modelfile
      ollama create borealis-4b -f Modelfile
    """
    from ..modelfiles.write import save_modelfile, write_modelfile

    if output and os.path.realpath(output.parent) != os.path.realpath(model.parent):
        raise click.UsageError(f"a Modelfile lies beside its model: use -o {model.with_name(output.name)}")
    if output is None:
        click.echo(write_modelfile(model, mmproj=mmproj, system=system, num_ctx=num_ctx), nl=False)
    else:
        save_modelfile(output, model, mmproj=mmproj, system=system, num_ctx=num_ctx)
        name = re.sub(r"[^a-z0-9_.-]+", "-", model.stem.lower()).strip("-.")[:80] or "model"
        show(f"{output}: written; next: ollama create {name} -f {shlex.quote(str(output))}", err=True)
