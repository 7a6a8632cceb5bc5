"""Matches module names with the patterns in an adapter's rank_pattern and alpha_pattern.

PEFT reads these keys as regular expressions. Supported here are module names, whole or from one of their dots on, with
alternatives `(q|k|v)` and `[qkv]`, numbers between dots `\\d+`, and one `.*`; `^` and `$` may stand at the ends. Other
expressions are refused, since a hostile regular expression can take hours to match.
"""

import re
from itertools import product
from math import prod

from ..errors import InvalidInput
from .file_access import quote

MAX_PATTERN = 512
MAX_ALTERNATIVES = 64

NAME = r"(?:[\w-]|\\?\.)+"
TOKEN = re.compile(
    r"\((?:\?:)?(?P<alternatives>[^()]+)\)"
    r"|(?P<anything>\.\*)"
    r"|(?P<number>(?:\\d|\[0-9\])\+(?=\\?\.(?!\*)|$))"
    r"|\[(?P<letters>\w+)\]"
    r"|(?P<name>(?:[\w-]|\\\.|\.(?!\*))+?(?=\(|\.\*|\\d|\[|$))"
)


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches all of `name`, or the part after one of its dots, as PEFT's `(.*\\.)?(pattern)$`.

    Raises InvalidInput for an unsupported pattern.
    """
    anchored = pattern.startswith("^")
    start = "" if anchored else r"(?:.*\.)?"
    return any(re.fullmatch(start + form, name) for form in _forms(pattern, anchored))


def _forms(pattern: str, anchored: bool) -> set[str]:
    """Expands the alternatives of a pattern into expressions, each with at most one `.*`."""
    inner = pattern[anchored:].removesuffix("$")
    parts: list[list[str]] = []
    at = 0
    while len(pattern) <= MAX_PATTERN and (token := TOKEN.match(inner, at)):
        at = token.end()
        parts.append(_expressions(token))
    is_known = at == len(inner) and all(parts) and prod(map(len, parts)) <= MAX_ALTERNATIVES and parts.count([".*"]) < 2
    if not inner or not is_known:
        raise InvalidInput(
            f"{quote(pattern)}: a regular expression that is not understood here, from its character "
            f"{at + anchored + 1} on; write the names of the modules out"
        )
    return {"".join(choice) for choice in product(*parts)}


def _expressions(token: re.Match[str]) -> list[str]:
    """Returns the expressions for a token, one per alternative; none if an alternative is not a plain name."""
    if token["anything"]:
        return [".*"]
    if token["number"]:
        return ["[0-9]+"]
    names = [*token["letters"]] if token["letters"] else (token["alternatives"] or token["name"]).split("|")
    known = all(re.fullmatch(NAME, name) for name in names)
    return [re.escape(name.replace("\\.", ".")) for name in names] if known else []
