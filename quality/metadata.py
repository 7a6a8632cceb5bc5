"""The section on metadata: does every key say what the source says?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType

from ..checkpoint.types import KV
from .report import Finding, Section, failures_first, spelled

OF_THE_FILE = ("general.file_type", "general.quantization_version", "general.alignment")
"""Keys that tell of this file's types and layout, not of the model."""

OF_THE_FILE_TOO = ("quantize.", "split.")
MEANT = ("general.architecture", "general.type", "general.sampling.")
"""The general keys that change what the model does; the others describe it."""


def check_metadata(found: Sequence[KV], expected: Sequence[KV]) -> Section:
    """Every key of the model, its type and its value. Descriptions (names, licence) may differ, which is noted."""
    ours, theirs = _by_key(found), _by_key(expected)
    findings = []
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        mine, other = ours.get(key), theirs.get(key)
        if not _same(mine, other):
            status = "failed" if _counts(key) else "note"
            findings.append(Finding(status, "key", key, *_difference(other, mine)))
    same = len(theirs) - sum(finding.where in theirs for finding in findings)
    if same:
        findings.append(Finding("ok", f"{same} keys"))
    return Section("metadata", failures_first(findings))


def _by_key(entries: Sequence[KV]) -> Mapping[str, KV]:
    return {kv.key: kv for kv in entries if kv.key not in OF_THE_FILE and not kv.key.startswith(OF_THE_FILE_TOO)}


def _counts(key: str) -> bool:
    return not key.startswith("general.") or key.startswith(MEANT)


def _same(a: KV | None, b: KV | None) -> bool:
    """Whether the two would be written in the same bytes."""
    if a is None or b is None:
        return False
    if (a.type, a.item_type) != (b.type, b.item_type):
        return False
    if a.value == b.value:
        return True
    kind = a.item_type if a.type is GGUFValueType.ARRAY else a.type
    if kind is GGUFValueType.FLOAT32:
        return np.array_equal(np.asarray(a.value, np.float32), np.asarray(b.value, np.float32), equal_nan=True)
    return a.type is GGUFValueType.ARRAY and tuple(a.value) == tuple(b.value)


def _difference(expected: KV | None, found: KV | None) -> tuple[str, str]:
    if expected is None or found is None:
        return _shown(expected), _shown(found)
    if (expected.type, expected.item_type) != (found.type, found.item_type):
        return _kind(expected), _kind(found)
    if expected.type is not GGUFValueType.ARRAY:
        return _texts(expected.value, found.value)
    if len(expected.value) != len(found.value):
        return f"{len(expected.value)} items", f"{len(found.value)} items"
    pairs = zip(_exact(expected), _exact(found), strict=True)
    places = [n for n, (a, b) in enumerate(pairs) if a != b]
    at = places[0]
    more = f" ({len(places)} of {len(found.value)} items differ)" if len(places) > 1 else ""
    return f"[{at}] {_short(expected.value[at])}", f"{_short(found.value[at])}{more}"


def _texts(a: Any, b: Any) -> tuple[str, str]:
    """Two values; of long texts, where they part."""
    if not (isinstance(a, str) and isinstance(b, str) and max(len(a), len(b)) > 60):
        return _short(a), _short(b)
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, at - 20)
    return f"from character {at}: {spelled(a[start : start + 60])}", spelled(b[start : start + 60])


def _exact(kv: KV) -> Sequence[Any]:
    """The items as the file holds them."""
    return np.asarray(kv.value, np.float32).tolist() if kv.item_type is GGUFValueType.FLOAT32 else kv.value


def _kind(kv: KV) -> str:
    return f"the type {kv.type.name}" if kv.item_type is None else f"an array of {kv.item_type.name}"


def _shown(kv: KV | None) -> str:
    if kv is None:
        return "no such key"
    return f"{len(kv.value)} items" if kv.type is GGUFValueType.ARRAY else _short(kv.value)


def _short(value: Any) -> str:
    if isinstance(value, str):
        return spelled(value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)
