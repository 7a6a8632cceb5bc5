"""Reports on plans and on written files, as text and as JSON."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..size_format import format_nbytes
from .common_options import show, table

if TYPE_CHECKING:
    from .. import FilePlan, FileResult


def plans_text(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    """The types and sizes of all tensors of each plan, and what all of them need."""
    return "\n\n".join([*map(_plan_text, plans), _summary(plans, jobs)])


def _plan_text(plan: "FilePlan") -> str:
    rows = [
        (
            t.tensor.name,
            " x ".join(map(str, t.tensor.shape)),
            t.tensor.source.slice.type.name,
            t.type.name,
            f"{t.requested.name} does not fit" if t.requested else "",
            format_nbytes(t.nbytes),
        )
        for t in plan.tensors
    ]
    head = f"{plan.path}  ({plan.label}, {format_nbytes(plan.size)})"
    return head + "\n" + table(("Tensor", "Shape", "From", "To", "Fallback", "Size"), rows)


def _summary(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    from .. import api

    rows = [(p.label, format_nbytes(p.size), f"{p.bits_per_weight:.2f}", fallbacks(p)) for p in plans]
    disk, memory = sum(p.size for p in plans), api.memory_needed(plans, jobs)
    summary = table(("Preset", "Size", "Bits/weight", "Fallbacks"), rows)
    return f"{summary}\n\nDisk: {format_nbytes(disk)}. Buffers: {format_nbytes(memory)}."


def fallbacks(plan: "FilePlan") -> str:
    n = sum(t.requested is not None for t in plan.tensors)
    return f"{n} of {len(plan.tensors)} tensors" if n else ""


def fallback_advice(plans: "Sequence[FilePlan]") -> None:
    """Warn, on stderr, when a model's shape makes a preset larger than its name promises."""
    for plan in plans:
        unfit = [t for t in plan.tensors if t.requested]
        if unfit:
            widths = ", ".join(map(str, sorted({t.tensor.n_per_row for t in unfit})))
            text = f"{plan.label}: {fallbacks(plan)} fall back to wider types, since rows of {widths} do not fill "
            text += f"their blocks: {plan.bits_per_weight:.1f} bits a weight."
            if plan.bits_per_weight > 6.5:
                text += " Q8_0 is hardly larger, and better."
            show(text, err=True)


def plans_json(plans: "Sequence[FilePlan]", jobs: int | None) -> str:
    from .. import api

    files = [
        {
            "path": str(plan.path),
            "preset": plan.label,
            "size": plan.size,
            "bits_per_weight": plan.bits_per_weight,
            "tensors": [
                {
                    "name": t.tensor.name,
                    "shape": t.tensor.shape,
                    "from": t.tensor.source.slice.type.name,
                    "type": t.type.name,
                    "requested": t.requested.name if t.requested else None,
                    "offset": t.offset,
                    "size": t.nbytes,
                }
                for t in plan.tensors
            ],
        }
        for plan in plans
    ]
    memory = api.memory_needed(plans, jobs)
    return json.dumps({"files": files, "disk": sum(p.size for p in plans), "memory": memory}, ensure_ascii=False)


def presets_text() -> str:
    """A table of the presets: the type most tensors get, its bits for each weight, and a line of help."""
    from ..quantize.presets import PRESETS, bits_per_weight

    rows = [
        (p.name, *((p.type.name, f"{bits_per_weight(p.type):.2f}") if p.type is not None else ("", "")), p.help)
        for p in PRESETS
    ]
    return table(("Preset", "Main type", "Bits/weight", "Use"), rows)


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
