"""The forms of module patterns that adapters' rank_pattern and alpha_pattern hold.

PEFT takes these keys as regular expressions, and writes names of modules. Known here are names, whole or from one of
their dots on, in which `(q|k|v)` and `[qkv]` stand for alternatives, `\\d+` for a number between dots, and one `.*` for
anything; `^` and `$` may stand at the ends. Other expressions are refused: `re` takes hours for a hostile one.
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
    """Whether `pattern` matches all of `name`, or what follows one of its dots: PEFT's `(.*\\.)?(pattern)$`.

    Raises InvalidInput for a pattern of another form.
    """
    anchored = pattern.startswith("^")
    start = "" if anchored else r"(?:.*\.)?"
    return any(re.fullmatch(start + form, name) for form in _forms(pattern, anchored))


def _forms(pattern: str, anchored: bool) -> set[str]:
    """The pattern without alternatives, once for each of them, as expressions with at most one `.*`."""
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
    """What a token stands for, as expressions; none when an alternative is more than a name."""
    if token["anything"]:
        return [".*"]
    if token["number"]:
        return ["[0-9]+"]
    names = [*token["letters"]] if token["letters"] else (token["alternatives"] or token["name"]).split("|")
    known = all(re.fullmatch(NAME, name) for name in names)
    return [re.escape(name.replace("\\.", ".")) for name in names] if known else []
