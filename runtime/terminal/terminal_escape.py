"""Text of a model, safe to show in a terminal."""

import re

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and what turns the direction of the text around it."""


def visible(text: str) -> str:
    """`text` with every character that would command the terminal spelled out: `^[` for ESC, `<U+202E>`, …

    A terminal obeys what a program prints: it can be made to overwrite lines, to change its title or the clipboard, to
    answer as if somebody typed. A model's text may come from anywhere.
    """
    return UNSAFE.sub(lambda found: _spelled(ord(found[0])), text)


def _spelled(code: int) -> str:
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"
