"""Reads fields of config.json and checks type and range. Raises InvalidInput for any other value."""

from collections.abc import Mapping
from typing import Any

from ..checkpoint.file_access import quote
from ..errors import InvalidInput

U32 = (1 << 32) - 1


def integer(where: str, values: Mapping[str, Any], key: str, default: int, *, low: int = 1, high: int = U32) -> int:
    """Returns `values[key]` as an int between `low` and `high`, or `default` if the key is missing."""
    value = values.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise InvalidInput(f"{where}: {key} is {shown(value)}; it must be a whole number from {low} to {high}")
    return value


def number(where: str, values: Mapping[str, Any], key: str, default: float) -> float:
    """Returns `values[key]` as a positive, finite float, or `default` if the key is missing."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= 3e38:
        raise InvalidInput(f"{where}: {key} is {shown(value)}; it must be a positive number")
    return float(value)


def mapping(where: str, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns `values[key]` as an object, empty if it is missing or null."""
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: {key} is {shown(value)}; it must be an object")
    return value


def only(where: str, values: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuses `values[key]` unless it is missing, null or one of `allowed`, which llama.cpp's runtime assumes."""
    value = values.get(key)
    if value is not None and value not in allowed:
        raise InvalidInput(
            f"{where}: {key} is {shown(value)}; llama.cpp's runtime computes as if it were "
            f"{' or '.join(shown(a) for a in allowed) or 'absent'}, so the GGUF would be silently wrong"
        )


def shown(value: Any, limit: int = 60) -> str:
    """Formats a JSON value for a one-line message; only text is quoted."""
    if isinstance(value, str):
        return quote(value, limit)
    text = repr(value)
    return ascii(text[:limit])[1:-1] + "…" * (len(text) > limit)
