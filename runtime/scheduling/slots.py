"""The slots of an engine's context, and how a new prompt reuses as much of their KV cache as possible.

A prompt is a list of numbers, its *tokens*: token ids, and for an image as many negative numbers as it has tokens, made
from the image's digest. Two prompts share the prefix that their tokens share. Going back in a sequence is free, unless
the model has sliding windows: keys and values that left the window may be gone. So a slot keeps *checkpoints*, copies
of its windows at the end of every prompt and where a prompt left the one before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..llama.limits import MAX_CHECKPOINT_BYTES, MAX_CHECKPOINTS

if TYPE_CHECKING:
    from ..llama.engine import Engine

MIN_SHARED_TOKENS = 32
"""Fewer shared tokens than this are computed again rather than copied."""


@dataclass(slots=True)
class Slot:
    """A sequence of the engine: the `tokens` in its cache, and `checkpoints` of its windows by length."""

    id: int
    tokens: list[int] = field(default_factory=list)
    checkpoints: dict[int, np.ndarray] = field(default_factory=dict)
    busy: bool = False
    last_used: int = 0


class SlotPool:
    """All slots of an engine; for the engine's thread only."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.all = [Slot(id) for id in range(engine.parallel)]
        self._clock = 0

    def has_idle(self) -> bool:
        """Whether any slot is idle."""
        return any(not slot.busy for slot in self.all)

    def acquire(self, tokens: Sequence[int]) -> tuple[Slot, int]:
        """An idle slot for a prompt, and how many of the prompt's tokens it holds, never the last of them."""
        idle = [slot for slot in self.all if not slot.busy]
        best = max(self.all, key=lambda slot: (self._reusable(slot, tokens), not slot.busy))
        reused = self._reusable(best, tokens)
        if best.busy or self._worth_keeping(best, reused, idle):
            other = min(idle, key=lambda slot: slot.last_used)
            at_least = max(reused, MIN_SHARED_TOKENS)
            if at_least > self._reusable(other, tokens) and reused >= MIN_SHARED_TOKENS and self._intact(best, reused):
                self.engine.copy(best.id, other.id)
                other.tokens, other.checkpoints = list(best.tokens), dict(best.checkpoints)
            else:
                reused = self._reusable(other, tokens)
            best = other
        self._truncate(best, reused)
        self._clock += 1
        best.busy, best.last_used = True, self._clock
        return best, reused

    def _worth_keeping(self, slot: Slot, reused: int, idle: Sequence[Slot]) -> bool:
        """Whether to leave `slot` as it is: most of it would be lost, it can be copied, and another is empty."""
        return 2 * reused < len(slot.tokens) and self._intact(slot, reused) and not all(each.tokens for each in idle)

    def longest_prefix(self, tokens: Sequence[int]) -> int:
        """The most tokens of a prompt's prefix that some slot holds now."""
        return max(common_prefix(slot.tokens, tokens) for slot in self.all)

    def release(self, slot: Slot) -> None:
        """Make the slot idle; it keeps its tokens."""
        slot.busy = False

    def clear(self, slot: Slot) -> None:
        """Empty the slot."""
        self.engine.truncate(slot.id, 0)
        slot.tokens, slot.checkpoints = [], {}

    def state_of(self, tokens: Sequence[int]) -> tuple[list[int], bytes]:
        """The tokens and the KV cache of the slot that shares most with `tokens`; empty if busy or with images."""
        best = max(self.all, key=lambda slot: common_prefix(slot.tokens, tokens))
        if not common_prefix(best.tokens, tokens) or best.busy or min(best.tokens) < 0:
            return [], b""
        return best.tokens, self.engine.state(best.id).tobytes()

    def restore(self, tokens: list[int], state: bytes) -> None:
        """Put what `state_of` returned into an idle slot; where there is none, the cache will be computed again."""
        idle = [slot for slot in self.all if not slot.busy]
        if not idle:
            return
        slot = min(idle, key=lambda slot: slot.last_used)
        self.clear(slot)
        if self.engine.restore(slot.id, state):
            slot.tokens = tokens
        else:
            self.clear(slot)

    def add_checkpoint(self, slot: Slot) -> None:
        """Keep a copy of the windows as they are now, if the model has any and a later prompt could use it."""
        length = len(slot.tokens)
        if not self.engine.window or length in slot.checkpoints or length < MIN_SHARED_TOKENS:
            return
        state = self.engine.state(slot.id, window_only=True, most=MAX_CHECKPOINT_BYTES)
        if not len(state):
            return
        slot.checkpoints[length] = state
        if len(slot.checkpoints) > MAX_CHECKPOINTS:
            del slot.checkpoints[next(iter(slot.checkpoints))]
        self._drop_checkpoints(slot)

    def _drop_checkpoints(self, newest: Slot) -> None:
        """Drop checkpoints of the slots used longest ago, until all take MAX_CHECKPOINT_BYTES; copies share memory."""
        nbytes = {id(state): len(state) for slot in self.all for state in slot.checkpoints.values()}
        for slot in sorted(self.all, key=lambda slot: (slot is newest, slot.last_used)):
            while sum(nbytes.values()) > MAX_CHECKPOINT_BYTES and len(slot.checkpoints) > (slot is newest):
                nbytes.pop(id(slot.checkpoints.pop(next(iter(slot.checkpoints)))), None)

    def _reusable(self, slot: Slot, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt the slot can provide."""
        shared = min(common_prefix(slot.tokens, tokens), len(tokens) - 1)
        while shared and tokens[shared] < 0 and tokens[shared - 1] == tokens[shared]:
            shared -= 1  # an image is computed as a whole
        if shared == len(slot.tokens) or self._intact(slot, shared):
            return shared
        return max((length for length in slot.checkpoints if length <= shared), default=0)

    def _intact(self, slot: Slot, length: int) -> bool:
        """Whether the windows at `length` are still in the slot's cache, so that it needs no checkpoint to go back."""
        if not self.engine.window:
            return True
        first = self.engine.first_position(slot.id)
        return first == 0 or 0 < first < length - self.engine.window

    def _truncate(self, slot: Slot, length: int) -> None:
        if length == len(slot.tokens):
            return
        if length and not self._intact(slot, length) and not self._restore_checkpoint(slot, length):
            length = 0
        self.engine.truncate(slot.id, length)
        del slot.tokens[length:]
        slot.checkpoints = {at: state for at, state in slot.checkpoints.items() if at <= length}

    def _restore_checkpoint(self, slot: Slot, length: int) -> bool:
        return self.engine.restore(slot.id, slot.checkpoints[length], window_only=True)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many numbers two lists begin with alike."""
    limit = min(len(left), len(right))
    low, high = 0, limit
    if left[:limit] == right[:limit]:
        return limit
    while low < high:  # slices are compared by the interpreter, much faster than element by element
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low
