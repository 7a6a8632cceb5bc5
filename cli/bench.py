"""`borealis-gguf bench`."""

import click


@click.group()
def bench() -> None:
    """Measure this machine."""
