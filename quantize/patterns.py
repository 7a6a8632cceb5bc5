"""Tensor name patterns: searched as C++'s ECMAScript `std::regex_search` does, in linear time whatever the pattern.

Python's `re` backtracks (`(a+)+$` on a long name takes hours) and its syntax differs. A pattern here becomes a set of
states that are followed all at once. Groups, alternatives, classes, anchors and repeats are known; back references
and look-ahead are refused.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInput

MAX_LENGTH, MAX_DEPTH, MAX_STATES = 256, 32, 512

Test = Callable[[str], bool]
Node = tuple[str, Any]
"""A piece of a pattern: ("char", test), ("assert", sign), ("all" or "any", [nodes]), ("repeat", (node, low, high))."""


def _digit(c: str) -> bool:
    return "0" <= c <= "9"


def _alpha(c: str) -> bool:
    return c.isascii() and c.isalpha()


def _word(c: str) -> bool:
    return _digit(c) or _alpha(c) or c == "_"


def _space(c: str) -> bool:
    return c in " \t\n\v\f\r"


_ESCAPES: dict[str, Test] = {"d": _digit, "w": _word, "s": _space}
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_POSIX: dict[str, Test] = {
    "digit": _digit,
    "alpha": _alpha,
    "space": _space,
    "alnum": lambda c: _digit(c) or _alpha(c),
    "lower": lambda c: _alpha(c) and c.islower(),
    "upper": lambda c: _alpha(c) and c.isupper(),
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
    "punct": lambda c: c.isascii() and c.isprintable() and not c.isalnum() and c != " ",
}
_CLOSED = frozenset("*+?{")


def _inverse(test: Test) -> Test:
    return lambda c: not test(c)


class _Parser:
    """Recursive descent over `text`; `self.at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def fail(self, why: str) -> InvalidInput:
        return InvalidInput(f"tensor pattern {self.text!r}: {why} at character {self.at + 1}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, token: str) -> bool:
        found = self.text.startswith(token, self.at)
        self.at += len(token) if found else 0
        return found

    def next(self) -> str:
        if self.at >= len(self.text):
            raise self.fail("ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def parse(self) -> Node:
        node = self.alternatives()
        if self.at < len(self.text):
            raise self.fail("unmatched )")
        return node

    def alternatives(self) -> Node:
        branches = [self.sequence()]
        while self.take("|"):
            branches.append(self.sequence())
        return ("any", branches)

    def sequence(self) -> Node:
        nodes = []
        while self.peek() not in ("", "|", ")"):
            nodes.append(self.term())
        return ("all", nodes)

    def term(self) -> Node:
        for sign in ("^", "$", "\\b", "\\B"):
            if self.take(sign):
                return ("assert", sign[-1])
        node = self.atom()
        while self.peek() in _CLOSED:
            low, high = self.quantifier()
            self.take("?")  # lazy or greedy: the same names match
            node = ("repeat", (node, low, high))
        return node

    def quantifier(self) -> tuple[int, int | None]:
        sign = self.next()
        if sign != "{":
            return (1 if sign == "+" else 0), (1 if sign == "?" else None)
        low = self.number()
        high: int | None = low
        if self.take(","):
            high = None if self.peek() == "}" else self.number()
        if not self.take("}") or (high is not None and high < low):
            raise self.fail("bad repeat count")
        return low, high

    def number(self) -> int:
        start = self.at
        while self.peek() and _digit(self.peek()):
            self.at += 1
        if not 0 < self.at - start < 5:
            raise self.fail("bad repeat count")
        return int(self.text[start : self.at])

    def atom(self) -> Node:
        c = self.next()
        if c == "(":
            return self.group()
        if c == "[":
            return ("char", self.char_class())
        if c == ".":
            return ("char", lambda x: x not in "\n\r")
        if c == "\\":
            return ("char", self.escape())
        if c in _CLOSED:
            raise self.fail(f"nothing before {c} to repeat")
        return ("char", c.__eq__)

    def group(self) -> Node:
        if self.take("?:") is False and self.peek() == "?":
            raise self.fail("look-ahead is not supported")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail("nested too deeply")
        node = self.alternatives()
        if not self.take(")"):
            raise self.fail("missing )")
        self.depth -= 1
        return node

    def escape(self) -> Test:
        kind = self.next()
        if kind.lower() in _ESCAPES:
            test = _ESCAPES[kind.lower()]
            return test if kind.islower() else _inverse(test)
        return self.literal(kind).__eq__

    def literal(self, kind: str) -> str:
        """The character that an escape stands for."""
        if kind in _CONTROLS:
            return _CONTROLS[kind]
        if kind in "xu":
            digits = self.text[self.at : self.at + (2 if kind == "x" else 4)]
            if len(digits) < (2 if kind == "x" else 4) or not all(map(_POSIX["xdigit"], digits)):
                raise self.fail("bad escape")
            self.at += len(digits)
            return chr(int(digits, 16))
        if kind.isalnum():
            raise self.fail(f"\\{kind} is not supported")
        return kind

    def char_class(self) -> Test:
        negated = self.take("^")
        tests: list[Test] = []
        while not self.take("]"):
            tests.append(self.class_item())
        if not tests:
            raise self.fail("empty character class")
        return (lambda c: not any(t(c) for t in tests)) if negated else (lambda c: any(t(c) for t in tests))

    def class_item(self) -> Test:
        if self.take("[:"):
            name = self.text[self.at :].partition(":]")[0]
            if name not in _POSIX:
                raise self.fail("unknown character class")
            self.at += len(name) + 2
            return _POSIX[name]
        low = self.class_char()
        if callable(low) or self.peek() != "-" or self.text[self.at + 1 : self.at + 2] == "]":
            return low if callable(low) else low.__eq__
        self.at += 1
        high = self.class_char()
        if callable(high) or high < low:
            raise self.fail("bad range")
        return lambda c: low <= c <= high

    def class_char(self) -> str | Test:
        c = self.next()
        if c != "\\":
            return c
        kind = self.next()
        if kind.lower() in _ESCAPES:
            self.at -= 1
            return self.escape()
        return self.literal(kind)


@dataclass(slots=True)
class _State:
    """Goes on to `ways`: after a character that passes `test`, or for free (where the assertion `sign` holds)."""

    test: Test | None
    sign: str
    ways: tuple[int, ...]


class Pattern:
    """A compiled pattern. `search(name)` says whether it occurs in `name`, in len(name) x states steps at most."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise InvalidInput(f"tensor pattern of {len(text)} characters: {MAX_LENGTH} at most")
        self.text = text
        self._states = [_State(None, "", ())]  # state 0 is the match
        self._start = self._add(_Parser(text).parse(), 0)

    def search(self, name: str) -> bool:
        current: set[int] = set()
        for at in range(len(name) + 1):
            current = self._closure([*current, self._start], name, at)
            if 0 in current:
                return True
            if at < len(name):
                current = {s.ways[0] for s in map(self._states.__getitem__, current) if s.test and s.test(name[at])}
        return False

    def _closure(self, states: Iterable[int], name: str, at: int) -> set[int]:
        """Every state that can be reached from `states` without a character."""
        seen, todo = set(), list(states)
        while todo:
            index = todo.pop()
            if index not in seen:
                seen.add(index)
                state = self._states[index]
                if state.test is None and (not state.sign or _holds(state.sign, name, at)):
                    todo.extend(state.ways)
        return seen

    def _new(self, test: Test | None, sign: str, ways: tuple[int, ...]) -> int:
        if len(self._states) >= MAX_STATES:
            raise InvalidInput(f"tensor pattern {self.text!r}: its repeats are too many")
        self._states.append(_State(test, sign, ways))
        return len(self._states) - 1

    def _add(self, node: Node, after: int) -> int:
        """States for `node` that go on to `after`; returns the first."""
        kind, value = node
        if kind == "char":
            return self._new(value, "", (after,))
        if kind == "assert":
            return self._new(None, value, (after,))
        if kind == "any":
            return self._new(None, "", tuple(self._add(branch, after) for branch in value))
        if kind == "all":
            for part in reversed(value):
                after = self._add(part, after)
            return after
        part, low, high = value
        return self._repeat(part, low, high, after)

    def _repeat(self, node: Node, low: int, high: int | None, after: int) -> int:
        if high is None:
            loop = self._new(None, "", ())
            self._states[loop].ways = (self._add(node, loop), after)
            first = loop
        else:
            first = after
            for _ in range(high - low):
                first = self._new(None, "", (self._add(node, first), after))
        for _ in range(low):
            first = self._add(node, first)
        return first


def _holds(sign: str, name: str, at: int) -> bool:
    if sign == "^":
        return at == 0
    if sign == "$":
        return at == len(name)
    boundary = (at > 0 and _word(name[at - 1])) != (at < len(name) and _word(name[at]))
    return boundary == (sign == "b")
