"""The sections on tensors: are all there, in the right shapes, and with the right weights?"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from ...pipeline.execute import Progress
from ...pipeline.plan import Codec, Tensor
from ...pipeline.sources import OpenSlice, open_local
from ..report import Finding, Section, failures_first
from . import error_bounds
from .comparison import Comparison, Pair, compare
from .fault_diagnosis import diagnose

DIAGNOSED = 8
"""Failed tensors that are looked at more closely, where that costs no fetching: a fault tends to repeat itself."""


def check_names(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Section:
    """The GGUF's tensors are those of the source, no more and no less, and of its shapes."""
    ours, theirs = {t.name: t for t in found}, {t.name: t for t in expected}
    findings = [Finding("failed", "tensor", name, "a tensor", "none") for name in theirs if name not in ours]
    findings += [Finding("failed", "tensor", name, "none", "a tensor") for name in ours if name not in theirs]
    findings += [
        Finding("failed", "shape", name, str(list(theirs[name].shape)), str(list(tensor.shape)))
        for name, tensor in ours.items()
        if name in theirs and tensor.shape != theirs[name].shape
    ]
    if not findings:
        findings = [Finding("ok", f"{len(ours)} names and shapes")]
    return Section("tensors", failures_first(findings))


def check_weights(
    pairs: Sequence[Pair],
    sources: Sequence[Tensor],
    codec: Codec,
    *,
    quick: bool,
    weighted: bool,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    open_slice: OpenSlice = open_local,
) -> Section:
    """Every weight lies where its type may put it; see `compare` for the arguments.

    sources: all tensors of the source, of which one may stand under another's name.
    """
    results = compare(
        pairs, codec, quick=quick, weighted=weighted, jobs=jobs, on_progress=on_progress, open_slice=open_slice
    )
    bad = [result for result in results if not result.ok]
    near = [] if any(tensor.source.slice.remote for tensor in sources) else bad[:DIAGNOSED]
    findings = [
        Finding("failed", "weights", r.pair.gguf.name, *_sides(r, sources if r in near else (), codec)) for r in bad
    ]
    findings += _by_type([result for result in results if result.ok])
    findings += [
        Finding("note", f"NaN or infinity in {_numbers(r.inherited)}, as in the source", r.pair.gguf.name)
        for r in results
        if r.inherited
    ]
    unlike = [r for r in results if r.unlike]
    if unlike:
        why = "an importance matrix chose them" if weighted else "another encoder or an importance matrix made them"
        text = f"{len(unlike)} tensors hold other weights than our encoder gives them, as near to the source: {why}"
        findings.append(Finding("note", text))
    return Section("weights", failures_first(findings))


def _by_type(results: Sequence[Comparison]) -> list[Finding]:
    """One line for all good tensors of a type, the widest types first."""
    groups: dict[object, list[Comparison]] = defaultdict(list)
    for result in results:
        groups[result.type].append(result)
    return [_typed(group) for group in sorted(groups.values(), key=lambda g: error_bounds.TYPICAL.get(g[0].type, 1.0))]


def _typed(group: Sequence[Comparison]) -> Finding:
    errors = [result.sums.relative for result in group]
    what = f"{len(group)} tensor{'s' * (len(group) > 1)}, {sum(r.count for r in group)} rows"
    exact = not max(errors)
    found = "equal" if exact else f"relative error {min(errors):.2g} to {max(errors):.2g}"
    again, equal = sum(r.equal + len(r.different) for r in group), sum(r.equal for r in group)
    if again and equal == again and not exact:
        found += ", each weight the one our encoder gives"
    return Finding("ok", what, group[0].type.name, "", found)


def _sides(result: Comparison, sources: Sequence[Tensor], codec: Codec) -> tuple[str, str]:
    """What was expected of a failed tensor, and what was found."""
    if result.broken:
        return "finite weights", f"NaN or infinity in {_numbers(result.broken)}"
    story = diagnose(result, sources, codec) if sources else ""
    found = f"{result.sums.relative:.2g} ({result.type.name})"
    if result.bad:
        found += f", beyond it {_numbers(result.bad)} of {result.count} compared"
    else:
        found += f", but changed weights in {_numbers(result.damaged)}"
    limit = error_bounds.limit(result.type)
    return f"a relative error up to {limit:.2g}" if limit else "equal weights", f"{found}{story and '; '}{story}"


def _numbers(rows: Sequence[int]) -> str:
    """Rows by number, the first few of them."""
    shown = ", ".join(map(str, rows[:4]))
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"
