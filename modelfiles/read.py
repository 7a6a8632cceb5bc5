"""Reads Modelfiles strictly: refuses text that Ollama would silently change or interpret differently."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidInput
from .syntax import FENCE, Instruction, check_instruction

SPACES = " \t"
ONCE = frozenset(("TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES"))


def read_modelfile(text: str, folder: Path | None = None) -> list[Instruction]:
    """Returns the instructions of a Modelfile in order. With its `folder`, every FROM must name a file in that folder.

    Raises InvalidInput, naming the line.
    """
    if "\r" in text:
        raise InvalidInput("Modelfile: it has carriage returns; save it with \\n line ends")
    instructions: list[Instruction] = []
    for line, instruction in _instructions(text):
        where = f"Modelfile line {line}"
        check_instruction(instruction, where)
        single = instruction.name in ONCE or (instruction.name == "PARAMETER" and instruction.key != "stop")
        if single and any((other.name, other.key) == (instruction.name, instruction.key) for other in instructions):
            raise InvalidInput(f"{where}: {instruction.name} {instruction.key}".rstrip() + " is given a second time")
        if instruction.name == "FROM" and folder is not None and not (folder / instruction.value).is_file():
            raise InvalidInput(
                f"{where}: {folder / instruction.value} is no file; Ollama would take it for a model's name"
            )
        instructions.append(instruction)
    if not any(instruction.name == "FROM" for instruction in instructions):
        raise InvalidInput("Modelfile: no FROM")
    return instructions


def _instructions(text: str) -> Iterator[tuple[int, Instruction]]:
    """Yields line numbers and unvalidated instructions."""
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        rest = line.lstrip(SPACES)
        if not rest or rest.startswith("#"):
            continue
        name, rest = _word(rest, number)
        key = ""
        if name.upper() in ("PARAMETER", "MESSAGE"):
            key, rest = _word(rest, number)
        yield number, Instruction(name.upper(), _value(rest, number, lines), key)


def _word(rest: str, number: int) -> tuple[str, str]:
    """Splits off the first word and one space after it."""
    end = next((at for at, char in enumerate(rest) if char in SPACES), 0)
    word = rest[:end]
    if not word or not word.isascii() or not word.replace("_", "").isalnum():
        raise InvalidInput(f"Modelfile line {number}: expected a word and a space, not {rest[:40]!r}")
    return word, rest[end + 1 :]


def _value(rest: str, number: int, lines: Iterator[tuple[int, str]]) -> str:
    """Reads a value that begins in `rest`; a quoted value ends at the first line that ends with its quote."""
    value = rest
    quote = _opening_quote(value)
    while not _is_closed(value, quote):
        next_line = next(lines, None)
        if next_line is None:
            raise InvalidInput(f"Modelfile line {number}: the quote is never closed")
        value += "\n" + next_line[1]
        quote = _opening_quote(value)
    value = value.strip(SPACES + "\n")
    return value[len(quote) : len(value) - len(quote)]


def _opening_quote(value: str) -> str:
    """Returns the quote that a value begins with, or an empty string."""
    value = value.lstrip(SPACES + "\n")
    return FENCE if value.startswith(FENCE) else '"' if value.startswith('"') else ""


def _is_closed(value: str, quote: str) -> bool:
    value = value.strip(SPACES + "\n")
    return len(value) >= 2 * len(quote) and value.endswith(quote)
