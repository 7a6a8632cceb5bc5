"""The fields of a JSON object from a stranger: each taken with its type and its limits, and named when it is wrong."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ...checkpoint.strict_json import bounded_integer, finite_number, refuse_constant
from .error_response import ErrorResponse, invalid_field

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
"""Commas and opening brackets in a body, counted before it is parsed: each may cost a hundred bytes."""

MAX_DIGITS = 40
"""Reading a number takes time that grows with the square of its length."""

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(raw: bytes) -> "Fields":
    """The JSON object in `raw`. Raises ErrorResponse (400) for anything that is not plain, finite JSON in UTF-8."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ErrorResponse(400, f"the body has more than {MAX_VALUES} values")
    try:
        text = raw.decode("utf-8")
        found = json.loads(text, parse_constant=refuse_constant, parse_float=finite_number, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ErrorResponse(400, f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ErrorResponse(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ErrorResponse(400, f"the body must be a JSON object, not {_kind(found)}")
    _check(found, bool(HALF_CHARACTER.search(raw)))
    return Fields(found)


def _integer(digits: str) -> int:
    return bounded_integer(digits, MAX_DIGITS)


def _check(found: Any, texts: bool) -> None:
    """Level by level, so that no depth can exhaust the stack. `texts`: there may be half characters in them."""
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if texts and any(_is_broken(value) for value in level if isinstance(value, str)):
            raise ErrorResponse(400, "a text in the body holds one half of a surrogate pair, which is no character")
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value, texts)]


def _inside(value: dict[str, Any] | list[Any], texts: bool) -> list[Any]:
    if isinstance(value, list):
        return value
    return [*value, *value.values()] if texts else list(value.values())


def _is_broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _too_deep() -> ErrorResponse:
    return ErrorResponse(400, f"the body is nested more than {MAX_DEPTH} deep")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    kinds = ((type(None), "null"), ((int, float), "a number"), (str, "a text"), (list, "an array"), (dict, "an object"))
    return next(name for types, name in kinds if isinstance(value, types))


class Fields:
    """A JSON object and where it stands in the body. A field that is null counts as left out."""

    def __init__(self, values: dict[str, Any], place: str = "") -> None:
        self.values = values
        self.place = place

    def path(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def invalid(self, name: str, message: str) -> ErrorResponse:
        return invalid_field(self.path(name), message)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def any(self, name: str) -> Any:
        return self.values.get(name)

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.invalid(name, f"must be a number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.invalid(name, f"{_short(value)} is not within {low:g} and {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.invalid(name, f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.invalid(name, f"{_short(value)} is not within {low} and {high}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.any(name)
        if value is not None and not isinstance(value, bool):
            raise self.invalid(name, f"must be true or false, not {_kind(value)}")
        return value

    def text(self, name: str, most: int | None = None) -> str | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.invalid(name, f"must be a text, not {_kind(value)}")
        if most is not None and len(value) > most:
            raise self.invalid(name, f"{len(value)} characters; {most} are the most")
        return value

    def needed_text(self, name: str, most: int | None = None) -> str:
        return self._needed(name, self.text(name, most))

    def one_of(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            raise self.invalid(name, f"{_short(value)} is not one of {', '.join(choices)}")
        return value

    def object(self, name: str) -> "Fields | None":
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.invalid(name, f"must be an object, not {_kind(value)}")
        return Fields(value, self.path(name))

    def needed_object(self, name: str) -> "Fields":
        return self._needed(name, self.object(name))

    def array(self, name: str, most: int) -> list[Any] | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.invalid(name, f"must be an array, not {_kind(value)}")
        if len(value) > most:
            raise self.invalid(name, f"{len(value)} entries; {most} are the most")
        return value

    def objects(self, name: str, most: int) -> "list[Fields]":
        """An array of objects; none when it is left out."""
        made = []
        for number, value in enumerate(self.array(name, most) or ()):
            place = f"{self.path(name)}[{number}]"
            if not isinstance(value, dict):
                raise invalid_field(place, f"must be an object, not {_kind(value)}")
            made.append(Fields(value, place))
        return made

    def _needed(self, name: str, value: Any) -> Any:
        if value is None:
            raise self.invalid(name, "is missing")
        return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
