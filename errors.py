"""One exception family, and one warning. The command line shows each as a line: what, where, what to do."""


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
