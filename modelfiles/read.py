"""A strict reader of Modelfiles: what it accepts, Ollama reads in the same way; what Ollama would mend, it refuses."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidInput
from .syntax import FENCE, Instruction, check_instruction

SPACES = " \t"
ONCE = frozenset(("TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES"))


def read_modelfile(text: str, folder: Path | None = None) -> list[Instruction]:
    """The instructions of a Modelfile, in order. With `folder`, where it lies, every FROM must be a file in there.

    Raises InvalidInput, naming the line.
    """
    if "\r" in text:
        raise InvalidInput("Modelfile: it has carriage returns; save it with \\n line ends")
    found: list[Instruction] = []
    for line, instruction in _instructions(text):
        where = f"Modelfile line {line}"
        check_instruction(instruction, where)
        single = instruction.name in ONCE or (instruction.name == "PARAMETER" and instruction.key != "stop")
        if single and any((other.name, other.key) == (instruction.name, instruction.key) for other in found):
            raise InvalidInput(f"{where}: {instruction.name} {instruction.key}".rstrip() + " is given a second time")
        if instruction.name == "FROM" and folder is not None and not (folder / instruction.value).is_file():
            raise InvalidInput(
                f"{where}: {folder / instruction.value} is no file; Ollama would take it for a model's name"
            )
        found.append(instruction)
    if not any(instruction.name == "FROM" for instruction in found):
        raise InvalidInput("Modelfile: no FROM")
    return found


def _instructions(text: str) -> Iterator[tuple[int, Instruction]]:
    """Line numbers and instructions, unchecked."""
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
    """The first word, and what follows the one space after it."""
    end = next((at for at, char in enumerate(rest) if char in SPACES), 0)
    word = rest[:end]
    if not word or not word.isascii() or not word.replace("_", "").isalnum():
        raise InvalidInput(f"Modelfile line {number}: expected a word and a space, not {rest[:40]!r}")
    return word, rest[end + 1 :]


def _value(rest: str, number: int, lines: Iterator[tuple[int, str]]) -> str:
    """A value that begins in `rest`; a quoted one ends at the first line that, trimmed, ends with its quote."""
    value = rest
    mark = _mark(value)
    while not _closed(value, mark):
        more = next(lines, None)
        if more is None:
            raise InvalidInput(f"Modelfile line {number}: the quote is never closed")
        value += "\n" + more[1]
        mark = _mark(value)
    value = value.strip(SPACES + "\n")
    return value[len(mark) : len(value) - len(mark)]


def _mark(value: str) -> str:
    """The quote a value begins with, if any."""
    value = value.lstrip(SPACES + "\n")
    return FENCE if value.startswith(FENCE) else '"' if value.startswith('"') else ""


def _closed(value: str, mark: str) -> bool:
    value = value.strip(SPACES + "\n")
    return len(value) >= 2 * len(mark) and value.endswith(mark)
