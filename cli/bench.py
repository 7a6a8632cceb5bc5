"""`borealis-gguf bench`."""

import click


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.argument("types", nargs=-1, metavar="[TYPE]...")
@click.option("--source", type=click.Choice(["f32", "f16", "bf16"]), default="f32", help="Type of the rows read.")
@click.option("--seconds", type=click.FloatRange(0.001), default=0.2, show_default=True, help="Per measurement.")
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True, help="The median counts.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def encoders(types: tuple[str, ...], source: str, seconds: float, repetitions: int, as_json: bool) -> None:
    """How fast weights are encoded: the package's kernels against ggml's encoders, in turn, bytes compared.

    One thread; in million weights per second. Exits with 1 when any bytes differ.

    \b
    Examples:
      borealis-gguf bench encoders
      borealis-gguf bench encoders Q4_K Q6_K --json
    """

    from ..checkpoint.types import GGMLQuantizationType
    from ..quantize.bench import BENCHED, bench_encoders
    from ..quantize.presets import parse_type
    from .report import speed_row, speeds_json

    speeds = []
    chosen = tuple(map(parse_type, types)) or BENCHED
    if not as_json:
        click.echo(speed_row("Type", "Importance", "Kernels", "ggml Mw/s", "ours Mw/s", "Times", "Bytes"))
    for speed in bench_encoders(
        chosen, source=GGMLQuantizationType[source.upper()], seconds=seconds, repetitions=repetitions
    ):
        speeds.append(speed)
        if not as_json:
            click.echo(
                speed_row(
                    speed.type.name,
                    "yes" if speed.importance else "no",
                    speed.isa or "none",
                    f"{speed.ggml / 1e6:.1f}",
                    f"{speed.native / 1e6:.1f}" if speed.native else "",
                    f"{speed.ratio:.1f}",
                    "equal" if speed.equal else "DIFFERENT",
                )
            )
    if as_json:
        click.echo(speeds_json(speeds))
    if not all(speed.equal for speed in speeds):
        raise SystemExit(1)
