"""JSON files of a checkpoint, bounded in size, number of values and time."""

import gc
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InvalidInput
from .file_access import open_regular, quote, recognize

MAX_JSON = 8 << 20  # configurations and indexes have kilobytes
MAX_TOKENIZER_JSON = 64 << 20  # 262144 pieces and their merges take 33 MB


MAX_INTEGER_DIGITS = 4300  # Python's own limit: reading an integer takes quadratic time

LONG_NUMBER = b"0" * 21
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else ord(" ") for byte in range(256))
"""Makes every digit a zero: numbers are looked at one by one, which is slow, only where one of them is long."""


def read_json_object(path: Path, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read one JSON object from a file of at most `limit` bytes; InvalidInput for anything else."""
    return parse_object(read_json_bytes(path, limit), str(path), limit=limit)


def read_json_bytes(path: Path, limit: int) -> bytes:
    """What is in a file of at most `limit` bytes, if that may be JSON; InvalidInput for anything else."""
    file, size = open_regular(path)
    with file:
        if size > limit:
            raise InvalidInput(f"{path}: {size} bytes; {limit} is the most such a file may have")
        text = file.read(limit)
    if (what := recognize(text)) is not None:
        raise InvalidInput(f"{path}: not JSON but {what}")
    return text


def check_values(text: bytes, where: str, limit: int) -> None:
    """Count values before they are made: `[],` costs 3 bytes in JSON and 64 in memory. Raises InvalidInput.

    Punctuation inside strings counts too, which leaves a real tokenizer.json a quarter of what is allowed.
    """
    containers, items = text.count(b"[") + text.count(b"{"), text.count(b",")
    if containers > limit // 32 or items > limit // 16:
        raise InvalidInput(f"{where}: {containers + items} JSON values; no checkpoint has that many")


def parse_object(text: bytes, where: str, *, limit: int = MAX_JSON, strict: bool = False) -> dict[str, Any]:
    """Parse one JSON object without duplicate keys.

    By default everything else that Python's json writes is read: NaN, infinities, integers of any size up to
    MAX_INTEGER_DIGITS, and a byte order mark in front. With `strict`, none of these, and no integer beyond 64 bits.
    """
    check_values(text, where, limit)
    has_long_number = LONG_NUMBER in text.translate(_DIGITS)
    try:
        with no_collection():
            value = json.loads(
                text.decode("utf-8" if strict else "utf-8-sig"),
                object_pairs_hook=_unique,
                parse_constant=refuse_constant if strict else None,
                parse_float=finite_number if strict else None,
                parse_int=(_short_integer if strict else bounded_integer) if has_long_number else None,
            )
    except RecursionError:
        raise InvalidInput(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise InvalidInput(f"{where}: not valid JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: holds a JSON {type(value).__name__}, an object is needed")
    return value


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the collector of cycles, of which JSON has none: it would go through half a million merges many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quote(twice)} occurs twice")
    return result


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def finite_number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {quote(digits, 30)} is too large")
    return number


def bounded_integer(digits: str, limit: int = MAX_INTEGER_DIGITS) -> int:
    if len(digits.lstrip("-")) > limit:
        raise ValueError(f"the number {quote(digits, 30)} is too large")
    return int(digits)


def _short_integer(digits: str) -> int:
    return bounded_integer(digits, 20)


def _one_line(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return " ".join(str(error).split())
