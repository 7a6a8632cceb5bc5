"""Plans, results and GGUF files, for people and for machines."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .common_options import size, table

if TYPE_CHECKING:
    from ..checkpoint.gguf import GGUFFile
    from ..checkpoint.types import KV
    from ..pipeline.execute import FileResult
    from ..pipeline.plan import FilePlan
    from ..quantize.encoders.benchmark import Speed

LONG = 8


def plans_text(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    return "\n\n".join([*map(_plan_text, plans), _needs(plans, jobs)])


def _plan_text(plan: "FilePlan") -> str:
    rows = [
        (
            t.tensor.name,
            " x ".join(map(str, t.tensor.shape)),
            t.tensor.source.slice.type.name,
            t.type.name,
            f"{t.wanted.name} does not fit" if t.wanted else "",
            size(t.nbytes),
        )
        for t in plan.tensors
    ]
    head = f"{plan.path}  ({plan.label}, {size(plan.size)})"
    return head + "\n" + table(("Tensor", "Shape", "From", "To", "Fallback", "Size"), rows)


def _needs(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    from ..pipeline.execute import available_cores, bits_per_weight, memory_needed

    rows = [(p.label, size(p.size), f"{bits_per_weight(p):.2f}", fallbacks(p)) for p in plans]
    disk, memory = sum(p.size for p in plans), memory_needed(plans, jobs or available_cores())
    summary = table(("Preset", "Size", "Bits/weight", "Fallbacks"), rows)
    return f"{summary}\n\nDisk: {size(disk)}. Buffers: {size(memory)}."


def fallbacks(plan: "FilePlan") -> str:
    n = sum(t.wanted is not None for t in plan.tensors)
    return f"{n} of {len(plan.tensors)} tensors" if n else ""


def fallback_advice(plans: "Sequence[FilePlan]") -> None:
    """Tell, on stderr, when a model's shape makes a preset larger than its name promises."""
    from ..pipeline.execute import bits_per_weight

    for plan in plans:
        unfit = [t for t in plan.tensors if t.wanted]
        if unfit:
            widths = ", ".join(map(str, sorted({t.tensor.n_per_row for t in unfit})))
            text = f"{plan.label}: {fallbacks(plan)} fall back to wider types, since rows of {widths} do not fill "
            text += f"their blocks: {bits_per_weight(plan):.1f} bits a weight."
            if bits_per_weight(plan) > 6.5:
                text += " Q8_0 is hardly larger, and better."
            click.echo(text, err=True)


def plans_json(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    from ..pipeline.execute import available_cores, bits_per_weight, memory_needed

    files = [
        {
            "path": str(plan.path),
            "preset": plan.label,
            "size": plan.size,
            "bits_per_weight": bits_per_weight(plan),
            "tensors": [
                {
                    "name": t.tensor.name,
                    "shape": t.tensor.shape,
                    "from": t.tensor.source.slice.type.name,
                    "type": t.type.name,
                    "wanted": t.wanted.name if t.wanted else None,
                    "offset": t.offset,
                    "size": t.nbytes,
                }
                for t in plan.tensors
            ],
        }
        for plan in plans
    ]
    memory = memory_needed(plans, jobs or available_cores())
    return json.dumps({"files": files, "disk": sum(p.size for p in plans), "memory": memory}, ensure_ascii=False)


def results_json(results: "Sequence[FileResult]") -> str:
    rows = [
        {
            "path": str(r.path),
            "preset": r.label,
            "size": r.size,
            "bits_per_weight": r.bits_per_weight,
            "seconds": r.seconds,
        }
        for r in results
    ]
    return json.dumps({"files": rows}, ensure_ascii=False)


ENCODER_COLUMNS = ("Type", "Importance", "Kernels", "ggml Mw/s", "ours Mw/s", "Times", "Bytes")


def encoder_row(cells: Sequence[str]) -> str:
    """A line of the encoders' table, which appears as it is measured."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (8, 10, 8, 9, 9, 6, 9), strict=True)).rstrip()


def encoder_cells(speed: "Speed") -> Sequence[str]:
    return (
        speed.type.name,
        "yes" if speed.importance else "no",
        speed.isa or "none",
        f"{speed.ggml / 1e6:.1f}",
        f"{speed.native / 1e6:.1f}" if speed.native else "",
        f"{speed.ratio:.1f}",
        "equal" if speed.equal else "DIFFERENT",
    )


def encoders_json(speeds: "Sequence[Speed]") -> str:
    rows = [
        {
            "type": s.type.name,
            "importance": s.importance,
            "kernels": s.isa,
            "ggml": s.ggml,
            "ours": s.native,
            "ratio": s.ratio,
            "equal": s.equal,
        }
        for s in speeds
    ]
    return json.dumps({"weights_per_second": rows})


def gguf_text(gguf: "GGUFFile") -> str:
    kv = table(("Key", "Type", "Value"), [(kv.key, _type(kv), _shown(kv)) for kv in gguf.kv])
    rows = [(n, " x ".join(map(str, s.shape)), s.type.name, size(s.nbytes)) for n, s in gguf.tensors.items()]
    counts = ", ".join(f"{n} {type}" for type, n in Counter(s.type.name for s in gguf.tensors.values()).most_common())
    weights = sum(_count(s.shape) for s in gguf.tensors.values())
    nbytes = sum(s.nbytes for s in gguf.tensors.values())
    head = f"{gguf.path}: GGUF v{gguf.version}, {len(rows)} tensors ({counts}), {weights:,} weights"
    head += f", {8 * nbytes / weights:.2f} bits each" if weights else ""
    return "\n\n".join([head, kv, table(("Tensor", "Shape", "Type", "Size"), rows)])


def _count(shape: Sequence[int]) -> int:
    from math import prod

    return prod(shape)


def _type(kv: "KV") -> str:
    return f"{kv.item_type.name}[{len(kv.value)}]" if kv.item_type is not None else kv.type.name


def _shown(kv: "KV", width: int = 80) -> str:
    if kv.item_type is not None:
        text = ", ".join(repr(v) if isinstance(v, str) else f"{v:g}" for v in kv.value[:LONG])
        text += ", …" if len(kv.value) > LONG else ""
    else:
        text = (
            repr(kv.value)
            if isinstance(kv.value, str)
            else f"{kv.value:.9g}"
            if isinstance(kv.value, float)
            else str(kv.value)
        )
    return text if len(text) <= width else text[: width - 1] + "…"


def gguf_json(gguf: "GGUFFile") -> str:
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
