"""The report's sections on tensors: names, shapes and weights."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from ...pipeline.execute import Progress
from ...pipeline.plan import Codec, Tensor
from ...pipeline.sources import OpenSlice, open_local
from ..report import Finding, Section, failures_first
from . import error_bounds
from .comparison_threads import compare_tensors
from .fault_diagnosis import diagnose_fault
from .tensor_comparison import TensorComparison, TensorPair

MAX_DIAGNOSED = 8
"""Failed tensors whose fault is diagnosed, which reads more rows of the source: a fault tends to repeat itself."""


def check_names(gguf: Sequence[Tensor], source: Sequence[Tensor]) -> Section:
    """The GGUF's tensors are those of the source, no more and no less, and of its shapes."""
    gguf_shapes, source_shapes = {t.name: t.shape for t in gguf}, {t.name: t.shape for t in source}
    missing = [name for name in source_shapes if name not in gguf_shapes]
    added = [name for name in gguf_shapes if name not in source_shapes]
    findings = [Finding("failed", "tensor", name, "a tensor", "none") for name in missing]
    findings += [Finding("failed", "tensor", name, "none", "a tensor") for name in added]
    findings += [
        Finding("failed", "shape", name, str(list(source_shapes[name])), str(list(shape)))
        for name, shape in gguf_shapes.items()
        if name in source_shapes and shape != source_shapes[name]
    ]
    if not findings:
        findings = [Finding("ok", f"{len(gguf_shapes)} names and shapes")]
    return Section("tensors", failures_first(findings))


def check_weights(
    pairs: Sequence[TensorPair],
    sources: Sequence[Tensor],
    codec: Codec,
    *,
    quick: bool,
    unknown_importance: bool,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    open_slice: OpenSlice = open_local,
) -> Section:
    """Every weight lies where its type may put it; see `compare_tensors` for the arguments.

    sources: all tensors of the source, one of which may lie under another's name. Of remote sources nothing more is
    fetched, so that their faults are not diagnosed.
    """
    results = compare_tensors(
        pairs,
        codec,
        quick=quick,
        unknown_importance=unknown_importance,
        jobs=jobs,
        on_progress=on_progress,
        open_slice=open_slice,
    )
    faulty = [result for result in results if not result.ok]
    remote = any(tensor.source.slice.remote for tensor in sources)
    diagnosed = 0 if remote else MAX_DIAGNOSED
    findings = [_fault(result, sources if n < diagnosed else (), codec) for n, result in enumerate(faulty)]
    findings += _by_type([result for result in results if result.ok])
    findings += [
        Finding("note", f"NaN or infinity in {_row_list(r.nonfinite_in_source)}, as in the source", r.pair.gguf.name)
        for r in results
        if r.nonfinite_in_source
    ]
    if count := sum(result.other_encoder for result in results):
        why = "an importance matrix chose them"
        if not unknown_importance:
            why = "another encoder or an importance matrix made them"
        text = f"{count} tensors hold other weights than our encoder gives them, as near to the source: {why}"
        findings.append(Finding("note", text))
    return Section("weights", failures_first(findings))


def _by_type(results: Sequence[TensorComparison]) -> list[Finding]:
    """One line for all good tensors of a type, the types with the smallest errors first."""
    groups: dict[object, list[TensorComparison]] = defaultdict(list)
    for result in results:
        groups[result.type].append(result)
    ordered = sorted(groups.values(), key=lambda group: error_bounds.TYPICAL.get(group[0].type, 1.0))
    return [_type_summary(group) for group in ordered]


def _type_summary(group: Sequence[TensorComparison]) -> Finding:
    errors = [result.sums.relative for result in group]
    what = f"{len(group)} tensor{'s' * (len(group) > 1)}, {sum(r.compared for r in group)} rows"
    exact = not max(errors)
    summary = "equal" if exact else f"relative error {min(errors):.2g} to {max(errors):.2g}"
    equal, different = sum(r.reencoded_equal for r in group), sum(len(r.reencoded_different) for r in group)
    if equal and not different and not exact:
        summary += ", each weight the one our encoder gives"
    return Finding("ok", what, group[0].type.name, "", summary)


def _fault(result: TensorComparison, sources: Sequence[Tensor], codec: Codec) -> Finding:
    """What was expected of a failed tensor, and what it holds; diagnosed if `sources` are given."""
    name = result.pair.gguf.name
    if result.nonfinite:
        return Finding("failed", "weights", name, "finite weights", f"NaN or infinity in {_row_list(result.nonfinite)}")
    diagnosis = diagnose_fault(result, sources, codec) if sources else ""
    error = f"{result.sums.relative:.2g} ({result.type.name})"
    if result.too_far:
        error += f", beyond it {_row_list(result.too_far)} of {result.compared} compared"
    else:
        error += f", but changed weights in {_row_list(result.damaged)}"
    limit = error_bounds.limit(result.type)
    expected = f"a relative error up to {limit:.2g}" if limit else "equal weights"
    return Finding("failed", "weights", name, expected, f"{error}{diagnosis and '; '}{diagnosis}")


def _row_list(rows: Sequence[int]) -> str:
    """Rows by number, the first few of them."""
    shown = ", ".join(map(str, rows[:4]))
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"
