"""The slash commands of the chat in a terminal: /system, /image, /save, /set and others."""

import difflib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.gguf_naming import model_stem
from ...errors import InvalidInput
from ..conversation import Conversation
from ..process.in_process_model import checked_seed
from ..prompting.image_decoding import read_image
from ..prompting.sampling_settings import Sampling, override_sampling
from ..state_file import MAGIC

if TYPE_CHECKING:
    from .chat_loop import ChatLoop

SAMPLING = tuple(field.name for field in fields(Sampling))
COUNTS = ("max_tokens", "seed")
KEYS = """\
A line that ends in \\ goes on in the next one; so do lines between \"\"\" and \"\"\". Alt-Enter begins a line too.
A message that begins with a slash is written with two. Ctrl-C stops the answer, Ctrl-D leaves."""


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command. `run` is called with the chat and the text after the command's name."""

    name: str
    argument: str
    help: str
    run: Callable[["ChatLoop", str], None]


def run_command(chat: "ChatLoop", line: str) -> None:
    """Run the command in `line`, which begins with a slash. Raises BorealisError."""
    name, _, argument = line[1:].partition(" ")
    if (command := COMMANDS.get(name)) is None:
        close = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        meant = f"did you mean /{close[0]}?" if close else "/help lists them."
        raise InvalidInput(f"/{name}: no such command; {meant} A message that begins with a slash is written //…")
    argument = argument.strip()
    if command.argument[:1].isalpha() and not argument:
        raise InvalidInput(f"/{name} what? It is /{name} {command.argument}")
    command.run(chat, argument)


def _system(chat: "ChatLoop", text: str) -> None:
    messages = chat.conversation.messages
    current = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if not text:
        chat.screen.note("No system message." if current is None else f"System message: {current}")
        return
    rest = messages if current is None else messages[1:]
    text = "" if text in ('""', "''") else text
    chat.conversation.messages = [{"role": "system", "content": text}, *rest] if text else list(rest)
    chat.screen.note("System message set." if text else "System message removed.")


def _image(chat: "ChatLoop", text: str) -> None:
    if not chat.model.vision:
        wanted = f"mmproj-{model_stem(chat.model.path)}-F16.gguf"
        raise InvalidInput(f"this model cannot see: there is no {wanted} beside it; give one with --mmproj")
    path = typed_path(text)
    read_image(path)
    chat.images.append(path)
    chat.screen.note(f"{path.name} goes with the next message.")


def _save(chat: "ChatLoop", text: str) -> None:
    path = typed_path(text)
    if path.is_dir():
        raise InvalidInput(f"{path}: a folder; name a file in it")
    if path.exists() and not _is_saved_conversation(path):
        raise InvalidInput(f"{path}: is there already, and no saved conversation; choose another name")
    chat.conversation.save(path)
    chat.screen.note(f"Saved {_count(chat)} to {path}.")


def _is_saved_conversation(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _load(chat: "ChatLoop", text: str) -> None:
    path = typed_path(text)
    chat.switch_to(chat.model.load_conversation(path))
    chat.screen.note(f"Loaded {_count(chat)} from {path}.")


def _count(chat: "ChatLoop") -> str:
    count = sum(message["role"] != "system" for message in chat.conversation.messages)
    return f"{count} message{'s' * (count != 1)}"


def _regenerate(chat: "ChatLoop", _: str) -> None:
    chat.regenerate()


def _stats(chat: "ChatLoop", _: str) -> None:
    chat.stats = not chat.stats
    chat.screen.note(f"Figures after every answer: {'on' if chat.stats else 'off'}.")


def _set(chat: "ChatLoop", text: str) -> None:
    if not text:
        chat.screen.note(_settings(chat))
        return
    name, _, value = text.replace("=", " ").partition(" ")
    options, value = chat.options, value.strip()
    if not value:
        raise InvalidInput(f"/set {name} to what? A number, or default")
    if name not in (*SAMPLING, *COUNTS):
        raise InvalidInput(f"{name}: no such setting; there are {', '.join((*SAMPLING, *COUNTS))}")
    if name in COUNTS:
        chat.options = replace(options, **{name: None if value == "default" else _parse_count(name, value)})
        chat.restart_seeds()
    else:
        number = None if value == "default" else _parse_number(name, value)
        override_sampling(Sampling(), {name: getattr(Sampling(), name, 0) if number is None else number})  # a check
        others = {key: other for key, other in options.sampling.items() if key != name}
        chat.options = replace(options, sampling=others if number is None else others | {name: number})
    chat.screen.note(f"{name} is {value}.")


def _settings(chat: "ChatLoop") -> str:
    given = {**chat.options.sampling, **{n: v for n in COUNTS if (v := getattr(chat.options, n)) is not None}}
    shown = ", ".join(f"{name} {value:g}" for name, value in given.items()) or "nothing"
    return f"Set: {shown}. There are {', '.join((*SAMPLING, *COUNTS))}; without a value the model's own holds."


def _parse_number(name: str, value: str) -> float:
    try:
        return float(value.replace(",", "."))
    except ValueError:
        raise InvalidInput(f"{name}: {value!r} is not a number") from None


def _parse_count(name: str, value: str) -> int:
    number = _parse_number(name, value)
    if number < (name == "max_tokens") or not number.is_integer():
        raise InvalidInput(f"{name}: {value!r} is not a whole number, {int(name == 'max_tokens')} or more")
    return checked_seed(int(number)) if name == "seed" else int(number)


def _clear(chat: "ChatLoop", _: str) -> None:
    old = chat.conversation
    system = [message for message in old.messages[:1] if message["role"] == "system"]
    chat.switch_to(Conversation(chat.model, system, overflow=old.overflow, options=old.options))
    chat.screen.note("A new conversation." + " The system message stays." * bool(system))


def _help(chat: "ChatLoop", _: str) -> None:
    rows = [(f"/{command.name} {command.argument}", command.help) for command in COMMANDS.values()]
    width = max(len(left) for left, _ in rows)
    chat.screen.note("\n".join([*(f"{left.ljust(width)}  {right}" for left, right in rows), KEYS]))


def _quit(chat: "ChatLoop", _: str) -> None:
    chat.ended = True


def typed_path(text: str) -> Path:
    """The absolute path of a file name that was typed, pasted or dropped: quoted, escaped or from `~` as in a shell."""
    literal, unquoted = _expanded(text), _expanded(_unquoted(text))
    try:
        return literal if literal.exists() else unquoted
    except OSError as error:
        raise InvalidInput(f"{text[:80]}: not a file name ({error.strerror or error})") from None


def _unquoted(text: str) -> str:
    try:
        words = [] if os.name == "nt" else shlex.split(text)  # there a backslash is a folder's
    except ValueError:  # an apostrophe in a name
        words = []
    if len(words) == 1:
        return words[0]
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # no such user
        return Path(text).absolute()


COMMANDS = {
    command.name: command
    for command in (
        Command("system", "[TEXT]", 'say how to answer; "" takes it back, without TEXT it is shown', _system),
        Command("image", "FILE", "a PNG, JPEG or WebP that goes with the next message", _image),
        Command("regenerate", "", "another answer to the last message", _regenerate),
        Command("clear", "", "begin anew; the system message stays", _clear),
        Command("save", "FILE", "keep the conversation", _save),
        Command("load", "FILE", "take up a kept conversation", _load),
        Command("set", "[NAME VALUE]", "temperature, top_k, max_tokens, seed …; default takes a value back", _set),
        Command("stats", "", "figures after every answer, on or off", _stats),
        Command("help", "", "this", _help),
        Command("quit", "", "leave", _quit),
    )
}
