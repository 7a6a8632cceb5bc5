"""Parses JSON files of a checkpoint, with limits on size, number of values and parsing time."""

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
"""Maps every digit to zero, to find long numbers quickly: the slow integer hook is used only for files with one."""


def read_json_object(path: Path, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """Reads one JSON object from a file of at most `limit` bytes. Raises InvalidInput for anything else."""
    return parse_object(read_json_bytes(path, limit), str(path), limit=limit)


def read_json_bytes(path: Path, limit: int) -> bytes:
    """Reads a file of at most `limit` bytes. Raises InvalidInput for a larger file, or one of another known format."""
    file, size = open_regular(path)
    with file:
        if size > limit:
            raise InvalidInput(f"{path}: {size} bytes; {limit} is the most such a file may have")
        text = file.read(limit)
    if (file_format := recognize(text)) is not None:
        raise InvalidInput(f"{path}: not JSON but {file_format}")
    return text


def check_values(text: bytes, where: str, limit: int) -> None:
    """Counts values before parsing: `[],` takes 3 bytes of JSON and 64 of memory. Raises InvalidInput for too many.

    Punctuation inside strings is counted too; even so, a real tokenizer.json stays at a quarter of the limit.
    """
    containers, items = text.count(b"[") + text.count(b"{"), text.count(b",")
    if containers > limit // 32 or items > limit // 16:
        raise InvalidInput(f"{where}: {containers + items} JSON values; no checkpoint has that many")


def parse_object(text: bytes, where: str, *, limit: int = MAX_JSON, strict: bool = False) -> dict[str, Any]:
    """Parses one JSON object; refuses duplicate keys.

    By default NaN, infinities, integers of up to MAX_INTEGER_DIGITS digits and a byte order mark are accepted, since
    Python's json writes these. With `strict`, all of them are refused, and integers of more than 20 digits.
    """
    check_values(text, where, limit)
    has_long_number = LONG_NUMBER in text.translate(_DIGITS)
    try:
        with no_collection():
            value = json.loads(
                text.decode("utf-8" if strict else "utf-8-sig"),
                object_pairs_hook=_without_duplicates,
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
    """Pauses the garbage collector, which would scan half a million merges many times; JSON has no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quote(duplicate)} occurs twice")
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
