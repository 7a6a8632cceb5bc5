"""Retries requests to the Hub: a bounded number of times, with growing pauses, or those that the server asks for."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar

from ...errors import STOPPED, BorealisError, Cancelled

ATTEMPTS = 6
"""Times that one request is tried."""

BACKOFF = 1.0
"""Seconds before the second attempt; each further one waits twice as long, unless the server names a time."""

MAX_WAIT = 330
"""Seconds that a server may ask to wait; the Hub counts requests in windows of five minutes."""

TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
"""HTTP statuses of a server that may answer later."""

T = TypeVar("T")
log = logging.getLogger("borealis_gguf")


class TransientError(Exception):
    """An error that a retry may mend. `wait` is the seconds that the server asked for, `advice` what to do at last."""

    def __init__(self, reason: str, wait: float | None = None, advice: str = "try again later") -> None:
        super().__init__(reason)
        self.wait = wait
        self.advice = advice


def with_retries(
    label: str, attempt: Callable[[], T], stop: threading.Event | None = None, attempts: int = ATTEMPTS
) -> T:
    """The result of `attempt`, which is repeated while it raises TransientError. Raises BorealisError in the end."""
    stop = stop or threading.Event()
    for failures in range(1, attempts + 1):
        try:
            return attempt()
        except TransientError as trouble:
            if failures == attempts:
                raise BorealisError(f"{label}: {trouble}, {attempts} times in a row; {trouble.advice}") from None
            wait = BACKOFF * 2 ** (failures - 1) if trouble.wait is None else trouble.wait
            if wait > MAX_WAIT:
                raise BorealisError(f"{label}: {trouble}, and asks to wait {wait:.0f} s; try again then") from None
            if wait >= 5:
                log.warning("%s: %s; trying again in %.0f s", label, trouble, wait)
        if stop.wait(wait):
            raise Cancelled(STOPPED)
    raise AssertionError("the last attempt returns or raises")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait: Retry-After as a number or a date, or what the Hub's own RateLimit header says."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        window = re.search(r"\bt=(\d{1,9})\b", headers.get("RateLimit", ""))
        return float(window[1]) if window else None
