"""Escapes control characters in text of files and models, so that it cannot command the terminal."""

import re

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and the marks that change the direction of text."""


def escape_terminal(text: str) -> str:
    """`text` with control characters spelled out: `^[` for ESC, `<U+202E>`, …

    Escape sequences can overwrite lines, change the title or the clipboard, or send input as if somebody typed; names
    and metadata in a file may hold some, and a model may repeat text from anywhere.
    """
    return UNSAFE.sub(lambda found: _spelled(ord(found[0])), text)


def escape_line(text: str) -> str:
    """The same for text that must stay one line: tabs and newlines are spelled out, too."""
    return escape_terminal(text).replace("\n", "^J").replace("\t", "^I")


def escape_json(text: str) -> str:
    """JSON with control characters as `\\u` escapes, which mean the same."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _spelled(code: int) -> str:
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"
