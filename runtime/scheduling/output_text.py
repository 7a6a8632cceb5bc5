"""From the bytes of tokens to the text a reader gets: whole characters only, and nothing of a stop text."""

import codecs
from collections.abc import Sequence


class Output:
    """The text of one answer as it grows."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes, last: bool = False) -> str:
        """What can be shown now that `data` has come; `stopped` says that a stop text was met and all is said."""
        self._held += self._decoder.decode(data, final=last)
        found = [at for stop in self.stop if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        keep = len(self._held) - min(found) if found else 0 if last else self._undecided()
        text, self._held = self._held[: len(self._held) - keep], "" if found else self._held[len(self._held) - keep :]
        return text

    def _undecided(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self.stop):
                return count
        return 0
