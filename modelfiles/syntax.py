"""Validates and formats Modelfile instructions, parameters and quoting, after Ollama's parser.go and api/types.go.

A value ends with its line, or is quoted by `"…"` or three double quotes and may then span lines. There are no escapes,
so a value that contains three double quotes cannot be written. Ollama silently drops unprintable characters (no-break
and zero-width spaces, control characters); here they are refused.
"""

import re
import unicodedata
from dataclasses import dataclass

from ..errors import InvalidInput

FENCE = '"""'
INSTRUCTIONS = frozenset(
    (
        "FROM",
        "LICENSE",
        "TEMPLATE",
        "SYSTEM",
        "ADAPTER",
        "DRAFT",
        "RENDERER",
        "PARSER",
        "PARAMETER",
        "MESSAGE",
        "REQUIRES",
    )
)
ROLES = frozenset(("system", "user", "assistant"))

_INT = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_BOOL = re.compile(r"1|t|T|TRUE|true|True|0|f|F|FALSE|false|False")
_TEXT = re.compile(r".*", re.DOTALL)

PARAMETERS = {
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch"), _INT),
    **dict.fromkeys(("num_gpu", "main_gpu", "num_thread", "draft_num_predict"), _INT),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), _FLOAT),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _FLOAT),
    "use_mmap": _BOOL,
    "stop": _TEXT,
}
"""Ollama's parameters and the pattern of their values. Only `stop` may be repeated."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `key` is the name of a PARAMETER, the role of a MESSAGE, and empty otherwise."""

    name: str
    value: str
    key: str = ""


def check_instruction(instruction: Instruction, where: str) -> None:
    """Raises InvalidInput for an instruction that Ollama would refuse, drop or change. `where` begins the message."""
    name, key, value = instruction.name, instruction.key, instruction.value
    if name not in INSTRUCTIONS:
        raise InvalidInput(f"{where}: {name[:40]!r} is no instruction; there are {', '.join(sorted(INSTRUCTIONS))}")
    check_value(value, where)
    if name == "PARAMETER":
        _check_parameter(key, value, where)
    elif name == "MESSAGE" and key not in ROLES:
        raise InvalidInput(f"{where}: role {key[:40]!r} is not one of {', '.join(sorted(ROLES))}")
    elif name == "FROM":
        _check_from(value, where)


def check_value(value: str, where: str) -> None:
    """Raises InvalidInput for a value that Ollama would not read back unchanged."""
    if FENCE in value:
        raise InvalidInput(f"{where}: three double quotes in a row cannot be written in a Modelfile; take them out")
    unprintable = next((char for char in value if not (char.isprintable() or char in "\n\t")), None)
    if unprintable is not None:
        name = unicodedata.name(unprintable, "a control character")
        raise InvalidInput(f"{where}: U+{ord(unprintable):04X} ({name}) would be dropped by Ollama; take it out")


def _check_parameter(key: str, value: str, where: str) -> None:
    if key not in PARAMETERS:
        raise InvalidInput(f"{where}: Ollama has no parameter {key[:40]!r}; it has {', '.join(sorted(PARAMETERS))}")
    if not PARAMETERS[key].fullmatch(value):
        raise InvalidInput(f"{where}: {value[:80]!r} is no value for the parameter {key}")


def _check_from(value: str, where: str) -> None:
    if not value or "\n" in value:
        raise InvalidInput(f"{where}: FROM takes one path or model name")
    if value.startswith("~") or ".." in re.split(r"[/\\]", value):
        raise InvalidInput(
            f"{where}: FROM {value[:200]!r} leads out of the Modelfile's folder; name a file in it as ./NAME"
        )


def quote(value: str) -> str:
    """Quotes `value` for a Modelfile if needed. Raises InvalidInput for a value that cannot be written."""
    check_value(value, "Modelfile")
    plain = value and "\n" not in value and value == value.strip(" \t") and not value.startswith('"')
    return value if plain else f"{FENCE}{value}{FENCE}"


def format_instruction(instruction: Instruction) -> str:
    """Formats one instruction without the final newline. Raises InvalidInput like `check_instruction`."""
    check_instruction(instruction, instruction.name)
    words = (instruction.name, instruction.key, quote(instruction.value))
    return " ".join(word for word in words if word)
