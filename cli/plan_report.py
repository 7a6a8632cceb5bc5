"""Reports on plans and on written files, as text and as JSON."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .common_options import size, table

if TYPE_CHECKING:
    from ..pipeline.execute import FileResult
    from ..pipeline.plan import FilePlan


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
