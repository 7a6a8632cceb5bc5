"""Validates the texts of a vocabulary: what llama.cpp cannot hold is refused. All 262144 are checked at once first."""

from collections.abc import Sequence

from ...checkpoint.file_access import quote

MAX_TOKEN = 64 << 10


def repeated(tokens: Sequence[str]) -> str:
    """Which two of `tokens` are the same, of which some are."""
    id = first_repeated(tokens)
    return f"tokens {tokens.index(tokens[id])} and {id} are both {quote(tokens[id])}"


def is_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8: JSON can spell half characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tokens_fault(tokens: Sequence[str]) -> str | None:
    """The first token that llama.cpp could not hold, and why; None if there is none."""
    whole = "".join(tokens)
    if is_text(whole) and "\0" not in whole and all(tokens) and 4 * max(map(len, tokens), default=0) <= MAX_TOKEN:
        return None  # nearly always, and they are many
    faults = ((id, token, token_fault(token)) for id, token in enumerate(tokens))
    return next((f"token {id}, {quote(token)}, {fault}" for id, token, fault in faults if fault), None)


def token_fault(token: str) -> str | None:
    """Why llama.cpp could not hold this token, or None."""
    try:
        nbytes = len(token.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not text"
    if not token or "\0" in token:  # llama.cpp reads up to a NUL
        return "holds a NUL" if token else "is empty"
    return None if nbytes <= MAX_TOKEN else f"has {nbytes} bytes; {MAX_TOKEN} is the most a token may have"


def first_repeated(texts: Sequence[str]) -> int:
    """The index of the first text that has been there before."""
    seen: set[str] = set()
    return next(id for id, text in enumerate(texts) if text in seen or seen.add(text))
