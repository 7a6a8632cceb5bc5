"""Where the program begins: while its modules are imported, Ctrl-C and SIGTERM end it at once, with a sentence."""

import os
import signal
from types import FrameType

STOPPED = "Stopped. Nothing stands half-written under a final name."


def main() -> None:
    """Import the command line and run it; see `main.main`, which takes over the signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)
    from .main import main as run

    run()


def _exit(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"{STOPPED}\n".encode("ascii"))
    os._exit(128 + signum)
