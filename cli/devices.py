"""`borealis-gguf devices`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..size_format import format_nbytes
from .common_options import table

if TYPE_CHECKING:
    from ..runtime.llama.devices import Device

HINT = (
    "llama.cpp sees no GPU here. If there is one, install llama-cpp-python with CUDA, Metal or Vulkan: see docs/gpu.md."
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines; memory in bytes.")
def devices(as_json: bool) -> None:
    """List what models can run on here, as the installed llama.cpp sees it: the CPU, and GPUs with their memory.

    The names are those that --device takes.

    \b
    Examples:
      borealis-gguf devices
      borealis-gguf devices --json
    """
    from .. import api

    found = api.devices()
    click.echo(as_json_text(found) if as_json else as_text(found))
    if not any(device.is_gpu for device in found):
        click.echo(HINT, err=True)


def as_text(devices: "Sequence[Device]") -> str:
    """A table, and below it what the CPU's code was built for."""
    rows = [(d.label, *_memory(d), d.description) for d in devices]
    features = [f"{d.label}: {' '.join(d.features)}" for d in devices if d.features]
    return "\n".join([table(("Device", "Memory", "Free", "What it is"), rows), "", *features]).rstrip()


def as_json_text(devices: "Sequence[Device]") -> str:
    return json.dumps([{"label": d.label, **asdict(d)} for d in devices], indent=2, ensure_ascii=False)


def _memory(device: "Device") -> tuple[str, str]:
    if not device.total:
        return "unknown", "unknown"
    return format_nbytes(device.total), format_nbytes(device.free)
