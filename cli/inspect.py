"""`borealis-gguf inspect`."""

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..size_format import format_nbytes
from .common_options import PATH, show, show_json, table

if TYPE_CHECKING:
    from ..checkpoint.gguf import GGUFFile
    from ..checkpoint.types import KV

SHOWN_ITEMS = 8


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

    gguf = api.inspect(file)
    if as_json:
        show_json(gguf_json(gguf))
    else:
        show(gguf_text(gguf))


def gguf_text(gguf: "GGUFFile") -> str:
    """Metadata and tensors as tables."""
    kv = table(("Key", "Type", "Value"), [(kv.key, _type(kv), _shown(kv)) for kv in gguf.kv])
    rows = [(n, " x ".join(map(str, s.shape)), s.type.name, format_nbytes(s.nbytes)) for n, s in gguf.tensors.items()]
    counts = ", ".join(f"{n} {type}" for type, n in Counter(s.type.name for s in gguf.tensors.values()).most_common())
    weights = sum(prod(s.shape) for s in gguf.tensors.values())
    nbytes = sum(s.nbytes for s in gguf.tensors.values())
    head = f"{gguf.path}: GGUF v{gguf.version}, {len(rows)} tensors ({counts}), {weights:,} weights"
    head += f", {8 * nbytes / weights:.2f} bits each" if weights else ""
    return "\n\n".join([head, kv, table(("Tensor", "Shape", "Type", "Size"), rows)])


def _type(kv: "KV") -> str:
    return f"{kv.item_type.name}[{len(kv.value)}]" if kv.item_type is not None else kv.type.name


def _shown(kv: "KV", width: int = 80) -> str:
    if kv.item_type is not None:
        text = ", ".join(repr(v) if isinstance(v, str) else f"{v:g}" for v in kv.value[:SHOWN_ITEMS])
        text += ", …" if len(kv.value) > SHOWN_ITEMS else ""
    else:
        text = f"{kv.value:.9g}" if isinstance(kv.value, float) else repr(kv.value)
    return text if len(text) <= width else text[: width - 1] + "…"


def gguf_json(gguf: "GGUFFile") -> str:
    """Metadata and tensors as JSON, in whole."""
    content: dict[str, Any] = {
        "path": str(gguf.path),
        "version": gguf.version,
        "alignment": gguf.alignment,
        "kv": [{"key": kv.key, "type": _type(kv), "value": kv.value} for kv in gguf.kv],
        "tensors": [
            {"name": n, "shape": s.shape, "type": s.type.name, "offset": s.offset, "size": s.nbytes}
            for n, s in gguf.tensors.items()
        ],
    }
    return json.dumps(content, ensure_ascii=False)
