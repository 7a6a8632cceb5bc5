"""The child of `run`: reads one request from its standard input, sends events, ends."""

import json
import os
import signal
import sys
from typing import IO, Any

from ..errors import BorealisError
from .child import die_quietly


def main() -> None:
    """Never raises: every error is an event."""
    die_quietly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    with _private_stdout() as pipe:
        try:
            _serve(json.load(sys.stdin.buffer), pipe)
            _send(pipe, end=True)
        except BorealisError as error:
            _send(pipe, error=str(error), code=error.exit_code)
        except MemoryError:
            _send(pipe, error="out of memory; use a smaller model or a smaller context", code=1)
        except BrokenPipeError:
            os._exit(1)  # the parent is gone


def _serve(request: dict[str, Any], pipe: IO[bytes]) -> None:
    from .chat import load

    _send(pipe, phase="loading the model")
    with load(request["model"], **request["load"]) as model:
        _send(pipe, phase="reading the prompt")
        asked = request["stream"]
        for number, text in enumerate(model.stream(**asked)):
            if not number:
                _send(pipe, phase="writing the answer")
            _send(pipe, text=text)


def _private_stdout() -> IO[bytes]:
    """The pipe to the parent. What native code prints to standard output goes to standard error instead."""
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def _send(pipe: IO[bytes], **event: Any) -> None:
    pipe.write(json.dumps(event).encode("ascii") + b"\n")
