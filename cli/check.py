"""`borealis-gguf check`."""

from pathlib import Path
from typing import Any

import click

from .common_options import PATH, lora_options, progress_bar, show, show_json


@click.command()
@click.argument("model", type=PATH)
@click.option("--against", required=True, metavar="SOURCE", help="The checkpoint (folder or Hub id), or the GGUF.")
@click.option("--text", type=PATH, metavar="FILE", help="Compare token ids on the lines of this file, too.")
@lora_options
@click.option("--imatrix", type=PATH, help="The importance matrix MODEL was made with: then weights must be exact.")
@click.option("--quick", is_flag=True, help="Weights of a few rows of each tensor, as after convert and quantize.")
@click.option("--logits", is_flag=True, help="Compare logits with transformers', too (pip install transformers torch).")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Threads. Default: the cores there are.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but what failed.")
def check(model: Path, against: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Prove that a GGUF is what it was made from: metadata, every weight, token ids, special tokens, chat template.

    Exits with 1 when anything is not.

    \b
    Examples:
      borealis-gguf check borealis-4b-Q4_K_M.gguf --against NbAiLab/borealis-4b
      borealis-gguf check gguf/borealis-1b-Q8_0.gguf --against ./borealis-1b --text nynorsk.txt
    """
    from .. import check
    from ..quality import report as shown

    with progress_bar(quiet, "weights") as on_progress:
        report = check(model, against, on_progress=on_progress, **options)
    if as_json:
        show_json(shown.as_json(report))
    elif not quiet:
        show(shown.as_text(report))
    if not report.ok:
        if quiet:
            show("\n".join(finding.line for finding in report.failures), err=True)
        raise SystemExit(1)
