"""Regular expressions that nobody has vouched for, matched without ever backtracking.

An adapter's rank_pattern and alpha_pattern hold expressions, and `re` takes hours for a spiteful one. Here a node
takes the set of positions a match can have reached to the set of positions after it, so the work is bounded.
Literals, `.`, `\\d`, `\\w`, `\\s`, `[…]`, groups, `|`, `^`, `$` and quantifiers are known; the rest is refused.
"""

from collections.abc import Callable
from functools import reduce

from ..errors import InvalidInput
from .file_access import quote

Node = Callable[[str, set[int]], set[int]]

MAX_PATTERN = 512
MAX_DEPTH = 8
MAX_REPEAT = 64
CLASSES = {"d": str.isdecimal, "w": lambda c: c.isalnum() or c == "_", "s": str.isspace}


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches all of `name`, or what follows one of its dots: PEFT's `(.*\\.)?(pattern)$`.

    Raises InvalidInput for a pattern that is not understood.
    """
    starts = {0} | {at + 1 for at, letter in enumerate(name) if letter == "."}
    return len(name) in _Parser(pattern).parse()(name, starts)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
        if len(self.pattern) > MAX_PATTERN:
            raise self.refusal()
        node = self.alternatives()
        if self.at < len(self.pattern):
            raise self.refusal()
        return node

    def refusal(self) -> InvalidInput:
        return InvalidInput(f"{quote(self.pattern)}: a regular expression that is not understood here, from its "
                            f"character {self.at + 1} on; write the names out")  # fmt: skip

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def next(self) -> str:
        letter = self.peek()
        if not letter:
            raise self.refusal()
        self.at += 1
        return letter

    def alternatives(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refusal()
        choices = [self.sequence()]
        while self.take("|"):
            choices.append(self.sequence())
        self.depth -= 1
        return lambda name, at: set().union(*(node(name, at) for node in choices))

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            nodes.append(self.quantified(self.atom()))
        return lambda name, at: reduce(lambda reached, node: node(name, reached), nodes, at)

    def atom(self) -> Node:
        letter = self.next()
        if letter == "(":
            if self.peek() == "?" and not self.take("?:"):
                raise self.refusal()
            node = self.alternatives()
            if not self.take(")"):
                raise self.refusal()
            return node
        if letter == "^":
            return lambda name, at: at & {0}
        if letter == "$":
            return lambda name, at: at & {len(name)}
        if letter in "*+?{}":
            self.at -= 1
            raise self.refusal()
        return _one(self.letters(letter))

    def letters(self, letter: str) -> Callable[[str], bool]:
        """Which characters an atom stands for, after its first one was taken."""
        if letter == ".":
            return lambda c: c != "\n"
        if letter == "[":
            return self.bracket()
        if letter == "\\":
            return self.escape()
        return letter.__eq__

    def escape(self) -> Callable[[str], bool]:
        letter = self.next()
        if letter in CLASSES:
            return CLASSES[letter]
        if letter.isalnum():
            self.at -= 1
            raise self.refusal()
        return letter.__eq__

    def bracket(self) -> Callable[[str], bool]:
        negated = self.take("^")
        kinds: list[Callable[[str], bool]] = []
        while not self.take("]"):
            first = self.next()
            if first == "\\":
                kinds.append(self.escape())
            elif self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", "\\", ""):
                self.next()
                kinds.append(_between(first, self.next()))
            else:
                kinds.append(first.__eq__)
        if not kinds:
            raise self.refusal()
        return lambda c: any(kind(c) for kind in kinds) != negated

    def quantified(self, node: Node) -> Node:
        low, high = self.bounds()
        self.take("?")  # laziness changes what a match prefers, not whether there is one
        if self.peek() and self.peek() in "*+?{":
            raise self.refusal()
        return node if (low, high) == (1, 1) else _repeated(node, low, high)

    def bounds(self) -> tuple[int, int | None]:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if not self.take("{"):
            return 1, 1
        digits = self.pattern[self.at : self.pattern.find("}", self.at)]
        low, comma, high = digits.partition(",")
        if not low.isascii() or not low.isdigit() or not ((high.isascii() and high.isdigit()) or high == ""):
            raise self.refusal()
        least, most = int(low[:9]), int(high[:9]) if high else None if comma else int(low[:9])
        if least > MAX_REPEAT or (most is not None and not least <= most <= MAX_REPEAT):
            raise self.refusal()
        self.at += len(digits) + 1
        return least, most


def _one(accepts: Callable[[str], bool]) -> Node:
    return lambda name, at: {i + 1 for i in at if i < len(name) and accepts(name[i])}


def _between(first: str, last: str) -> Callable[[str], bool]:
    return lambda c: first <= c <= last


def _repeated(node: Node, low: int, high: int | None) -> Node:
    def run(name: str, at: set[int]) -> set[int]:
        for _ in range(low):
            at = node(name, at)
        reached, new, times = set(at), at, low
        while new and (high is None or times < high):
            new = node(name, new) - reached
            reached |= new
            times += 1
        return reached

    return run
