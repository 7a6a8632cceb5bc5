"""One exception family, and one warning. The command line shows each as a line: what, where, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class BorealisError(Exception):
    """Something the user can act on. `exit_code` is what the command line returns."""

    exit_code = 1


class InvalidInput(BorealisError):
    """The input, or what was asked of it, cannot be used. Nothing has been written."""

    exit_code = 2


STOPPED = "stopped; nothing was written under a final name"


class Cancelled(BorealisError):
    """The caller asked the work to stop; nothing stands under a final name."""

    exit_code = 130


class Busy(BorealisError):
    """Too many requests are waiting already; try again after `retry_after` seconds."""

    def __init__(self, text: str, retry_after: int = 1) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class EngineDied(BorealisError):
    """Native code ended the model's process. The next request starts it again."""


class EncoderWarning(RuntimeWarning):
    """ggml encodes where the package's own encoders were meant to: the bytes are the same, and take longer."""


@contextmanager
def os_errors_as_ours(about: object = "the system", then: str = "") -> Iterator[None]:
    """Turns an OSError that nothing else has explained into a BorealisError of one line.

    It names the error's own file, or else `about`; `then` says what became of the work. Also a decorator.
    """
    try:
        yield
    except OSError as error:
        raise BorealisError(f"{error.filename or about}: {error.strerror or error}{then}") from error
