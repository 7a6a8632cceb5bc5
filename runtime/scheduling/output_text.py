"""From the bytes of tokens to the text of an answer: whole characters only, and nothing of a stop text."""

import codecs
from collections.abc import Sequence


class OutputText:
    """The text of one answer as it grows."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def push(self, data: bytes, last: bool = False) -> str:
        """The text that can be shown after `data`; then `stopped` says whether a stop text ended the answer."""
        self._pending += self._decoder.decode(data, final=last)
        found = [at for stop in self.stop if (at := self._pending.find(stop)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._pending) - (0 if last else self._undecided())
        text, self._pending = self._pending[:end], "" if found else self._pending[end:]
        return text

    def _undecided(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for count in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-count:]) for stop in self.stop):
                return count
        return 0
