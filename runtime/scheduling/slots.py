"""What the engine's sequences hold, and how a new prompt gets as much of that as possible.

A prompt is a list of numbers, a *trace*: token ids, and for an image as many negative numbers as it has tokens, made
of its digest. Two prompts share what their traces share. Going back in a sequence is free, unless the model has
sliding windows: keys and values that left the window may be gone. So a copy of those is kept at the end of every
prompt, and where a prompt left the one before it.
"""

import ctypes
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..llama.engine import Engine

MARKS_BYTES = 256 << 20
"""Most memory for copies of windows, of all sequences together; one of Borealis 4b takes up to 125 MB."""
MARKS = 8
"""Most copies of one sequence; the oldest goes first."""
WORTH = 32
"""Fewer shared tokens than this are computed again rather than copied."""


@dataclass(slots=True)
class Sequence:
    """One of the engine's sequences. `trace` is what it holds; `marks` are places with copies of the windows."""

    id: int
    trace: list[int] = field(default_factory=list)
    marks: "dict[int, ctypes.Array[ctypes.c_uint8]]" = field(default_factory=dict)
    busy: bool = False
    used: int = 0


class Sequences:
    """All sequences of an engine; used by its one thread."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.all = [Sequence(id) for id in range(engine.parallel)]
        self._clock = 0

    def free(self) -> bool:
        """Whether any is idle."""
        return any(not sequence.busy for sequence in self.all)

    def take(self, trace: List[int]) -> tuple[Sequence, int]:
        """An idle sequence for a prompt, and how many of the prompt's tokens it holds; the last is never among them."""
        idle = [sequence for sequence in self.all if not sequence.busy]
        best = max(self.all, key=lambda s: (self._kept(s, trace), not s.busy))
        kept = self._kept(best, trace)
        if best.busy or self._leave_alone(best, kept, idle):
            other = min(idle, key=lambda s: s.used)
            if max(kept, WORTH) > self._kept(other, trace) and kept >= WORTH and self._whole(best, kept):
                self.engine.copy(best.id, other.id)
                other.trace, other.marks = list(best.trace), dict(best.marks)
            else:
                kept = self._kept(other, trace)
            best = other
        self._go_back(best, kept)
        self._clock += 1
        best.busy, best.used = True, self._clock
        return best, kept

    def _leave_alone(self, best: Sequence, kept: int, idle: List[Sequence]) -> bool:
        """Whether to keep `best` as it is: little of it is wanted, it can be copied, and another is empty."""
        return 2 * kept < len(best.trace) and self._whole(best, kept) and not all(s.trace for s in idle)

    def best(self, trace: List[int]) -> int:
        """How many tokens of `trace` some sequence holds now."""
        return max(common(sequence.trace, trace) for sequence in self.all)

    def release(self, sequence: Sequence) -> None:
        """Nobody works in it any more; what it holds stays."""
        sequence.busy = False

    def lose(self, sequence: Sequence) -> None:
        """Forget everything it holds."""
        self.engine.cut(sequence.id, 0)
        sequence.trace, sequence.marks = [], {}

    def mark(self, sequence: Sequence) -> None:
        """Keep a copy of the windows as they are now, if the model has any and they may be wanted."""
        length = len(sequence.trace)
        if not self.engine.window or length in sequence.marks or length < WORTH:
            return
        state = self.engine.state(sequence.id, window_only=True, most=MARKS_BYTES)
        if not len(state):
            return
        sequence.marks[length] = state
        if len(sequence.marks) > MARKS:
            del sequence.marks[next(iter(sequence.marks))]
        held = {id(state): len(state) for each in self.all for state in each.marks.values()}
        for each in sorted(self.all, key=lambda each: (each is sequence, each.used)):
            while sum(held.values()) > MARKS_BYTES and len(each.marks) > (each is sequence):
                held.pop(id(each.marks.pop(next(iter(each.marks)))), None)

    def _kept(self, sequence: Sequence, trace: List[int]) -> int:
        """How many tokens of `trace` the sequence can offer."""
        shared = min(common(sequence.trace, trace), len(trace) - 1)
        while shared and trace[shared] < 0 and trace[shared - 1] == trace[shared]:
            shared -= 1  # an image is read whole
        if shared == len(sequence.trace) or self._whole(sequence, shared):
            return shared
        return max((place for place in sequence.marks if place <= shared), default=0)

    def _whole(self, sequence: Sequence, length: int) -> bool:
        """Whether the sequence can go back to `length` as it is."""
        if not self.engine.window:
            return True
        first = self.engine.first_held(sequence.id)
        return first == 0 or 0 < first < length - self.engine.window

    def _go_back(self, sequence: Sequence, length: int) -> None:
        if length == len(sequence.trace):
            return
        if length and not self._whole(sequence, length) and not self._restored(sequence, length):
            length = 0
        self.engine.cut(sequence.id, length)
        del sequence.trace[length:]
        sequence.marks = {place: state for place, state in sequence.marks.items() if place <= length}

    def _restored(self, sequence: Sequence, length: int) -> bool:
        return self.engine.restore(sequence.id, sequence.marks[length], window_only=True)


def common(left: List[int], right: List[int]) -> int:
    """How many numbers two lists begin with alike."""
    limit = min(len(left), len(right))
    low, high = 0, limit
    if left[:limit] == right[:limit]:
        return limit
    while low < high:  # slices are compared by the interpreter, much faster than element by element
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low
