"""The report's section on metadata: every key of the GGUF beside the same key of its source."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType

from ..checkpoint.types import KV
from .report import Finding, Section, different_parts, failures_first, spelled

FILE_KEYS = ("general.file_type", "general.quantization_version", "general.alignment")
"""Keys of this file's types and layout, which the source need not share."""

FILE_PREFIXES = ("quantize.", "split.")
BEHAVIOUR_KEYS = ("general.architecture", "general.type", "general.sampling.")
"""The general keys (or their prefixes) that change what a model does; the other ones describe it."""


def check_metadata(gguf: Sequence[KV], source: Sequence[KV]) -> Section:
    """Every key of the model, its type and its value. A description (name, licence) may differ, which is a note."""
    gguf_kv, source_kv = _by_key(gguf), _by_key(source)
    findings = []
    for key in [*source_kv, *(key for key in gguf_kv if key not in source_kv)]:
        expected, actual = source_kv.get(key), gguf_kv.get(key)
        if not _same(expected, actual):
            status = "failed" if _changes_behaviour(key) else "note"
            findings.append(Finding(status, "key", key, *_difference(expected, actual)))
    same = len(source_kv) - sum(finding.where in source_kv for finding in findings)
    if same:
        findings.append(Finding("ok", f"{same} keys"))
    return Section("metadata", failures_first(findings))


def _by_key(entries: Sequence[KV]) -> Mapping[str, KV]:
    return {kv.key: kv for kv in entries if kv.key not in FILE_KEYS and not kv.key.startswith(FILE_PREFIXES)}


def _changes_behaviour(key: str) -> bool:
    return not key.startswith("general.") or key.startswith(BEHAVIOUR_KEYS)


def _same(a: KV | None, b: KV | None) -> bool:
    """Whether both would be written as the same bytes."""
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


def _difference(expected: KV | None, actual: KV | None) -> tuple[str, str]:
    """Both sides of a key that differs, as a finding shows them: value, type, length or first different item."""
    if expected is None or actual is None:
        return _summary(expected), _summary(actual)
    if (expected.type, expected.item_type) != (actual.type, actual.item_type):
        return _type_name(expected), _type_name(actual)
    if expected.type is not GGUFValueType.ARRAY:
        return _values(expected.value, actual.value)
    if len(expected.value) != len(actual.value):
        return f"{len(expected.value)} items", f"{len(actual.value)} items"
    pairs = zip(_stored_items(expected), _stored_items(actual), strict=True)
    different = [n for n, (a, b) in enumerate(pairs) if a != b]
    at = different[0]
    more = f" ({len(different)} of {len(actual.value)} items differ)" if len(different) > 1 else ""
    return f"[{at}] {_short(expected.value[at])}", f"{_short(actual.value[at])}{more}"


def _values(a: Any, b: Any) -> tuple[str, str]:
    """Two values; of long texts, the part where they begin to differ."""
    if not (isinstance(a, str) and isinstance(b, str) and max(len(a), len(b)) > 60):
        return _short(a), _short(b)
    return different_parts(a, b)


def _stored_items(kv: KV) -> Sequence[Any]:
    """The items of an array, floats in the precision in which the file holds them."""
    return np.asarray(kv.value, np.float32).tolist() if kv.item_type is GGUFValueType.FLOAT32 else kv.value


def _type_name(kv: KV) -> str:
    return f"the type {kv.type.name}" if kv.item_type is None else f"an array of {kv.item_type.name}"


def _summary(kv: KV | None) -> str:
    if kv is None:
        return "no such key"
    return f"{len(kv.value)} items" if kv.type is GGUFValueType.ARRAY else _short(kv.value)


def _short(value: Any) -> str:
    if isinstance(value, str):
        return spelled(value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)
