"""Validates the texts of a vocabulary: refuses tokens that llama.cpp cannot load."""

from collections.abc import Sequence

from ...checkpoint.file_access import quote

MAX_TOKEN = 64 << 10


def repeated(tokens: Sequence[str]) -> str:
    """Describes the first duplicate; `tokens` must contain one."""
    id = first_repeated(tokens)
    return f"tokens {tokens.index(tokens[id])} and {id} are both {quote(tokens[id])}"


def is_text(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8; lone surrogates from JSON cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tokens_fault(tokens: Sequence[str]) -> str | None:
    """Describes the first token that llama.cpp cannot load, or returns None."""
    joined = "".join(tokens)
    if is_text(joined) and "\0" not in joined and all(tokens) and 4 * max(map(len, tokens), default=0) <= MAX_TOKEN:
        return None  # fast path: checks all 262144 tokens at once
    faults = ((id, token, token_fault(token)) for id, token in enumerate(tokens))
    return next((f"token {id}, {quote(token)}, {fault}" for id, token, fault in faults if fault), None)


def token_fault(token: str) -> str | None:
    """Returns the reason why llama.cpp cannot load this token, or None."""
    try:
        nbytes = len(token.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not text"
    if not token or "\0" in token:  # llama.cpp reads a token up to the first NUL
        return "holds a NUL" if token else "is empty"
    return None if nbytes <= MAX_TOKEN else f"has {nbytes} bytes; {MAX_TOKEN} is the most a token may have"


def first_repeated(texts: Sequence[str]) -> int:
    """Returns the index of the first text that equals an earlier one."""
    seen: set[str] = set()
    return next(id for id, text in enumerate(texts) if text in seen or seen.add(text))
