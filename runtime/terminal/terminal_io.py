"""Input and output of the chat: lines from a keyboard or a pipe, answers to stdout, remarks and errors to stderr."""

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO

from ...atomic_file import PRIVATE
from ...errors import BorealisError
from ...terminal_escape import escape_terminal
from ...user_data import private_file

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

QUOTES = '"""'
DIM, RED = "2", "31"


class InputReader(Protocol):
    """A source of input lines: a keyboard or a pipe."""

    @property
    def interactive(self) -> bool:
        """Whether lines are typed at a terminal."""
        ...

    def line(self, prompt: str) -> str:
        """The next line, without its end. Raises EOFError, and KeyboardInterrupt for Ctrl-C."""
        ...


@dataclass(frozen=True, slots=True)
class UserInput:
    """One input of one or more lines; `quoted`: it stood between triple quotes, so it is never a command."""

    text: str
    quoted: bool = False


def read_input(reader: InputReader, prompt: str) -> UserInput:
    """The next input: a line, continued after a final backslash, or all lines between triple quotes."""
    line = reader.line(prompt)
    more = "… ".rjust(len(prompt))
    if line.lstrip().startswith(QUOTES):
        return UserInput(_quoted(line.lstrip()[len(QUOTES) :], lambda: reader.line(more)), True)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(reader.line(more))
        except EOFError:
            break
    return UserInput("\n".join(lines))


def _quoted(line: str, more: Callable[[], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(more())
        except EOFError:
            return "\n".join(lines).strip("\n")  # the end of the input closes them too
    lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    return "\n".join(lines).strip("\n")


class PipeReader:
    """Reads lines of UTF-8 from a file or another program."""

    interactive = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._bom = stream, codecs.BOM_UTF8

    def line(self, prompt: str) -> str:
        raw = self._stream.readline()
        if not raw:
            raise EOFError
        raw, self._bom = raw.removeprefix(self._bom), b""
        return raw.decode("utf-8", "replace").rstrip("\r\n")


class KeyboardReader:
    """Reads lines typed at a terminal, with line editing, a history over sessions, and Tab completion of `words`."""

    interactive = True

    def __init__(self, words: Sequence[str], *, colour: bool, history: Path | None) -> None:
        """`history` is the file of typed lines; None keeps no history."""
        self._style = "bold ansigreen" if colour else ""
        self._session = _prompt_session(words, history)

    def line(self, prompt: str) -> str:
        return self._session.prompt([(self._style, prompt)])


def _prompt_session(words: Sequence[str], history: Path | None) -> "PromptSession[str]":
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
        key_bindings=_key_bindings(),
        reserve_space_for_menu=4,
    )


def _key_bindings() -> Any:
    """Enter sends; Alt-Enter begins a line; Ctrl-C deletes the typed text, or raises KeyboardInterrupt without any."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _begin_a_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _delete_input(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def history_file() -> Path | None:
    """The history file, readable by its owner alone; None where it cannot be made."""
    try:
        path = private_file("chat-history")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE))
    except (OSError, BorealisError):
        return None
    return path


class Screen:
    """Writes answers, remarks, errors and progress. Control characters are escaped before they reach a terminal."""

    def __init__(self, out: TextIO, err: TextIO, *, colour: bool | None = None) -> None:
        """`colour` None: on a terminal, unless NO_COLOR is set."""
        self.out, self.err = out, err
        self.colour = wants_colour(err) if colour is None else colour
        self._escapes = out.isatty()
        self._width = 0

    def answer(self, text: str) -> None:
        """Write a part of an answer and flush it."""
        self.out.write(escape_terminal(text) if self._escapes else text)
        self.out.flush()

    def note(self, text: str) -> None:
        """Write a remark."""
        self._write_remark(text, DIM)

    def show_error(self, text: str) -> None:
        """Write an error message."""
        self._write_remark(text, RED)

    def _write_remark(self, text: str, style: str) -> None:
        self.out.flush()
        shown = escape_terminal(text)
        self.err.write(f"\x1b[{style}m{shown}\x1b[0m\n" if self.colour else f"{shown}\n")
        self.err.flush()

    def progress(self, what: str, fraction: float) -> None:
        """Write a progress line over the last one, if stderr is a terminal; `clear` removes it."""
        if self.err.isatty():
            line = escape_terminal(f"{what} {fraction:4.0%}")
            self.err.write(f"\r{line.ljust(self._width)}")
            self.err.flush()
            self._width = len(line)

    def clear(self) -> None:
        """Remove the progress line."""
        if self._width:
            self.err.write(f"\r{' ' * self._width}\r")
            self.err.flush()
            self._width = 0


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and the user has not turned them off."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return _enable_windows_escapes() if sys.platform == "win32" else True


def _enable_windows_escapes() -> bool:
    """Turn on escape sequences in a Windows console; False when it has none."""
    import ctypes

    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle, mode = kernel.GetStdHandle(-12), ctypes.c_uint32()  # STD_ERROR_HANDLE
    if not kernel.GetConsoleMode(handle, ctypes.byref(mode)):
        return False
    return bool(kernel.SetConsoleMode(handle, mode.value | 0x0004))  # ENABLE_VIRTUAL_TERMINAL_PROCESSING


def open_reader(stdin: Any, words: Iterable[str], *, colour: bool, keep_history: bool) -> InputReader:
    """A keyboard reader if `stdin` is a terminal, else a pipe reader."""
    if not stdin.isatty():
        return PipeReader(stdin.buffer)
    return KeyboardReader(list(words), colour=colour, history=history_file() if keep_history else None)
