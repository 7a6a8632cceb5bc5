"""Reads the model card's front matter, the YAML block at the top of README.md.

Errors never stop a conversion: unreadable entries are left out with one warning.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ...checkpoint.file_access import open_regular, quote
from ...checkpoint.folder import Checkpoint
from ...errors import InvalidInput

MAX_BLOCK = 64 << 10  # YAML parses 100 KB a second; real cards have 1 to 10
MAX_BRACKETS = 1000  # PyYAML needs quadratic time for unclosed ones
MAX_HEAD = 4 * MAX_BLOCK  # the UTF-8 bytes of MAX_BLOCK characters
MARK, ENDS = "---", ("---", "...")
KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")

KEY = re.compile(r"([A-Za-z][\w-]*):(?:[ \n]|$)")
CONTINUED = re.compile(r"[ #\-\]}]|$")
PLAIN_TEXT = re.compile(r"[^\s\[{\"'&*!|>#][^\n]*")


class _TextLoader(yaml.SafeLoader):
    """Loads scalars as text, except empty ones and the key `<<`: `no` means Norwegian here, and `1.0` is a version."""


_TextLoader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag in KEPT_TAGS])
}


class _BrokenYaml(ValueError):
    """The block is not valid YAML; the text gives the reason."""


def read_model_card(checkpoint: Checkpoint, keys: Collection[str]) -> dict[str, Any]:
    """Returns the entries of the front matter; empty without README.md or front matter, or if the card is ignored.

    If the YAML is broken, each of `keys` is read from its own lines.
    """
    if not checkpoint.use_card:
        return {}
    where = checkpoint.path / "README.md"
    try:
        path = checkpoint.file("README.md")
        block, closed, is_utf8 = _front_matter(_read_head(path)) if path else ("", True, True)
    except InvalidInput as error:
        checkpoint.warn(f"{error}; the model card is ignored")
        return {}
    if not closed and _excess(block):
        block = _first_paragraph(block)
    if excess := _excess(block):
        checkpoint.warn(f"{where}: front matter with {excess}; the model card is ignored")
        return {}
    if not is_utf8:
        checkpoint.warn(f"{where}: front matter that is not UTF-8; it is read as Windows-1252")
    try:
        card = _load(block)
    except _BrokenYaml as error:
        card, unreadable = _read_keys(block if closed else _first_paragraph(block), keys)
        left_out = f"; left out: {', '.join(sorted(unreadable))}" if unreadable else ""
        checkpoint.warn(f"{where}: front matter that is not YAML ({error}), so it is read key by key{left_out}")
    return card if isinstance(card, dict) else {}


def _excess(block: str) -> str | None:
    """Returns the reason why a block is too expensive to parse, or None."""
    if len(block) > MAX_BLOCK:
        return f"more than {MAX_BLOCK} characters"
    return f"more than {MAX_BRACKETS} brackets" if block.count("[") + block.count("{") > MAX_BRACKETS else None


def _read_head(path: Path) -> bytes:
    file, _ = open_regular(path)
    with file:
        return file.read(MAX_HEAD)


def _front_matter(head: bytes) -> tuple[str, bool, bool]:
    """Returns the block, whether a closing mark ends it, and whether it is UTF-8 or UTF-16.

    Without a closing mark, the block is the rest of the file, as for llama.cpp's converter.
    """
    lines = _decoded(head).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].rstrip() != MARK:
        return "", True, True
    end = next((n for n, line in enumerate(lines[1:], 1) if line.rstrip() in ENDS), None)
    inside = lines[1:end]
    decoded = [_windows_1252(line) for line in inside]
    return "\n".join(decoded).replace("\t", "  "), end is not None, decoded == inside


def _decoded(head: bytes) -> str:
    """Decodes UTF-16, recognized by its byte order mark or zero bytes, else UTF-8; bad bytes become surrogates."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", "replace")
    if head.startswith((b"-\0-\0", b"\0-\0-")):
        return head.decode("utf-16-le" if head[1] == 0 else "utf-16-be", "replace")
    return head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _windows_1252(line: str) -> str:
    """Decodes a line with surrogates as Windows-1252, or Latin-1; returns other lines unchanged."""
    data = line.encode("utf-8", "surrogateescape")
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _first_paragraph(block: str) -> str:
    """Returns the text before the first empty line or heading, since prose follows unclosed front matter."""
    return re.split(r"^(?:\s*$|# )", block.lstrip("\n"), maxsplit=1, flags=re.MULTILINE)[0]


def _load(block: str) -> Any:
    """Parses YAML. Raises _BrokenYaml with the reason."""
    try:
        return yaml.load(block, _TextLoader)
    except RecursionError:
        raise _BrokenYaml("nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        raise _BrokenYaml(line + _printable(error.problem or "")) from None
    except Exception as error:  # PyYAML raises KeyError and AttributeError for wrong tags
        raise _BrokenYaml(_printable(str(error))) from None


def _printable(reason: str) -> str:
    line = " ".join(reason.split())[:120]
    return line if line.isprintable() else quote(line, 120)


def _read_keys(block: str, keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Reads each of `keys` from its own lines; returns the values, and the keys that could not be read."""
    chunks: dict[str, str] = {}
    key = None
    for line in block.split("\n"):
        if match := KEY.match(line):
            key, chunks[match[1]] = match[1], line
        elif key and CONTINUED.match(line):
            chunks[key] += f"\n{line}"
        else:
            key = None
    values: dict[str, Any] = {}
    unreadable = []
    for key in chunks.keys() & set(keys):
        try:
            values[key] = _load(chunks[key])[key]
        except _BrokenYaml:
            text = chunks[key].rstrip("\n").partition(":")[2].strip(" ")
            if PLAIN_TEXT.fullmatch(text):
                values[key] = text
            else:
                unreadable.append(key)
    return values, unreadable
