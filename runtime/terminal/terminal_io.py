"""A terminal, or what stands in for it: lines come in, answers go to standard output, remarks to standard error."""

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO

from ...machine_cache import cache_dir
from .terminal_escape import visible

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

QUOTES = '"""'
DIM, RED = "2", "31"


class Reader(Protocol):
    """Where lines come from."""

    @property
    def interactive(self) -> bool:
        """Whether somebody sits there."""
        ...

    def line(self, prompt: str) -> str:
        """The next line, without its end. Raises EOFError, and KeyboardInterrupt for Ctrl-C."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """One input; with `quoted` it stood between triple quotes and is never a command."""

    text: str
    quoted: bool = False


def read_input(reader: Reader, prompt: str) -> Said:
    """The next line, with those it goes on in: after a final backslash, or up to closing triple quotes."""
    line = reader.line(prompt)
    more = "… ".rjust(len(prompt))
    if line.lstrip().startswith(QUOTES):
        return Said(_quoted(line.lstrip()[len(QUOTES) :], lambda: reader.line(more)), True)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(reader.line(more))
        except EOFError:
            break
    return Said("\n".join(lines))


def _quoted(line: str, more: Callable[[], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(more())
        except EOFError:
            return "\n".join(lines).strip("\n")  # the end of the input closes them too
    lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    return "\n".join(lines).strip("\n")


class Pipe:
    """Lines of a file or another program, UTF-8."""

    interactive = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._bom = stream, codecs.BOM_UTF8

    def line(self, prompt: str) -> str:
        raw = self._stream.readline()
        if not raw:
            raise EOFError
        raw, self._bom = raw.removeprefix(self._bom), b""
        return raw.decode("utf-8", "replace").rstrip("\r\n")


class Keyboard:
    """Somebody at a terminal: line editing, history over sessions, pasting of many lines, Tab for `words`."""

    interactive = True

    def __init__(self, words: Sequence[str], *, colour: bool, history: Path | None) -> None:
        """`history` is a file that only its owner can read; None keeps none."""
        self._style = "bold ansigreen" if colour else ""
        self._session = _session(words, history)

    def line(self, prompt: str) -> str:
        return self._session.prompt([(self._style, prompt)])


def _session(words: Sequence[str], history: Path | None) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    return PromptSession(
        output=create_output(always_prefer_tty=True),  # standard output may be a file
        history=None if history is None else FileHistory(str(history)),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation=lambda width, _line, _wrapped: "… ".rjust(width),
        key_bindings=_keys(),
        reserve_space_for_menu=4,
    )


def _keys() -> Any:
    """Enter sends; Alt-Enter begins a line; Ctrl-C throws away what is typed, or is told when nothing is."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _begin_a_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _throw_away(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def history_file() -> Path | None:
    """Where typed lines are kept, for their owner alone; None where that is impossible."""
    path = cache_dir() / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return None
    return path


class Screen:
    """Where answers and remarks go. Nothing of a model reaches a terminal that would command it."""

    def __init__(self, out: TextIO, err: TextIO, *, colour: bool | None = None) -> None:
        """`colour` None: on a terminal, unless NO_COLOR is set."""
        self.out, self.err = out, err
        self.colour = wants_colour(err) if colour is None else colour
        self._escapes = out.isatty()
        self._width = 0

    def answer(self, text: str) -> None:
        """A piece of an answer, at once."""
        self.out.write(visible(text) if self._escapes else text)
        self.out.flush()

    def note(self, text: str) -> None:
        """A remark."""
        self._remark(text, DIM)

    def fault(self, text: str) -> None:
        """What went wrong."""
        self._remark(text, RED)

    def _remark(self, text: str, style: str) -> None:
        self.out.flush()
        shown = visible(text)
        self.err.write(f"\x1b[{style}m{shown}\x1b[0m\n" if self.colour else f"{shown}\n")
        self.err.flush()

    def progress(self, what: str, fraction: float) -> None:
        """A line that is written over; `clear` takes it away. Nobody watches, nothing is written."""
        if self.err.isatty():
            line = visible(f"{what} {fraction:4.0%}")
            self.err.write(f"\r{line.ljust(self._width)}")
            self.err.flush()
            self._width = len(line)

    def clear(self) -> None:
        """Take the progress line away."""
        if self._width:
            self.err.write(f"\r{' ' * self._width}\r")
            self.err.flush()
            self._width = 0


def wants_colour(stream: TextIO) -> bool:
    """Whether colours may be written there."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return _obeys_escapes() if sys.platform == "win32" else True


def _obeys_escapes() -> bool:
    """Have a Windows console obey escape sequences, as others do; False when it cannot."""
    import ctypes

    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle, mode = kernel.GetStdHandle(-12), ctypes.c_uint32()  # STD_ERROR_HANDLE
    if not kernel.GetConsoleMode(handle, ctypes.byref(mode)):
        return False
    return bool(kernel.SetConsoleMode(handle, mode.value | 0x0004))  # ENABLE_VIRTUAL_TERMINAL_PROCESSING


def open_reader(stdin: Any, words: Iterable[str], *, colour: bool, keep_history: bool) -> Reader:
    """The keyboard if `stdin` is one, else its lines."""
    if not stdin.isatty():
        return Pipe(stdin.buffer)
    return Keyboard(list(words), colour=colour, history=history_file() if keep_history else None)
