"""The process that renders chat templates: reads requests from standard input and writes answers, until its input ends.

A chat template is untrusted code, which may never end or fill the memory. The parent, `template_renderer`, ends this
process then; where it cannot, because it died itself or memory grows too fast, this process ends itself.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from ...errors import InvalidInput
from ..process.child_process import die_quietly, private_stdout
from .chat_template import ChatTemplate, Message, Rendering

OUT_OF_MEMORY = 3
"""The exit code after a MemoryError."""


def main() -> None:
    """Answer requests; a template that fails is an answer, too.

    The arguments are the most bytes of memory, and the most seconds a request may take by the clock.
    """
    max_memory, max_seconds = int(sys.argv[1]), float(sys.argv[2])
    die_quietly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    _limit_memory(max_memory)
    tasks: dict[str, Callable[..., Any]] = {"render_each": render_each, "render_segments": render_segments}
    pipe = private_stdout()
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (os.devnull is no path on Windows)
        pipe.write(b"ready\n")
        for line in sys.stdin.buffer:
            faulthandler.dump_traceback_later(max_seconds, exit=True, file=nowhere)
            try:
                answer = pack(_answer(tasks, **unpack(line)))
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            pipe.write(answer)
            faulthandler.cancel_dump_traceback_later()


def _limit_memory(limit: int) -> None:
    """Makes allocations beyond `limit` fail, on Linux."""
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):  # a lower limit is in force already
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _answer(tasks: dict[str, Callable[..., Any]], task: str, template: Sequence[str], **arguments: Any) -> Any:
    from .template_sandbox import one_line

    try:
        return {"value": tasks[task](ChatTemplate(*template), **arguments)}
    except InvalidInput as error:
        return {"error": str(error)}
    except MemoryError:
        raise
    except Exception as error:  # it printed what looks like a marker of `prompt_segments`
        return {"error": f"the model's chat template fails: {one_line(error)}"}


def render_each(template: ChatTemplate, conversations: Sequence[Sequence[Message]]) -> list[Any]:
    """The fields of a Rendering for each conversation."""
    return [astuple(_render(template, messages)) for messages in conversations]


def _render(template: ChatTemplate, messages: Sequence[Message]) -> Rendering:
    from .template_sandbox import render

    try:
        return Rendering(render(template, messages))
    except InvalidInput as error:
        return Rendering(None, str(error))


def render_segments(template: ChatTemplate, messages: Sequence[Message]) -> list[Any]:
    """The text, None where it is that of the segments, and the fields of the segments."""
    from . import prompt_segments

    text, segments = prompt_segments.render_segments(template, messages)
    same = text == "".join(segment.text for segment in segments)
    return [None if same else text, [astuple(segment) for segment in segments]]


def pack(value: Any) -> bytes:
    """`value` as one line of JSON; images and other bytes, which templates do not print, as empty text."""
    return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return ""
    return dict(value) if hasattr(value, "keys") else list(value)


def unpack(line: bytes) -> Any:
    """The value that `pack` was given."""
    return json.loads(line.decode("utf-8", "surrogatepass"))
