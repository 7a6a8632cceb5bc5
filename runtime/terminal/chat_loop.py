"""The chat in a terminal: reads lines, runs commands, sends messages and streams the answers."""

import _thread
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ...errors import BorealisError, EngineDied, InvalidInput
from ..answer import Answer
from ..conversation import Conversation
from ..events import Options, Overflow, Text, Usage
from ..process.in_process_model import MAX_SEED
from .chat_commands import run_command
from .terminal_io import InputReader, Screen, UserInput, read_input

if TYPE_CHECKING:
    from ..model import Model

CANCEL_SECONDS = 0.5
HOW_TO_LEAVE = "Ctrl-D or /quit leaves."


def greeting(model: "Model") -> str:
    """The lines shown before the first prompt. Raises InvalidInput for a model without a chat template."""
    if not model.has_template:
        raise InvalidInput(f"{model.path}: has no chat template, so it is no chat model; see run --raw")
    sees = " · sees images" if model.vision else ""
    where = f"{model.placement}\n" if model.placement else ""
    return f"{where}{model.path.name} · {model.context} tokens{sees} · /help tells what can be typed."


@dataclass(frozen=True, slots=True)
class UserMessage:
    """A message of the user, with the images attached to it."""

    text: str
    images: tuple[Path, ...] = ()


class ChatLoop:
    """A chat with a loaded model in a terminal. `run` is the loop; slash commands call the other methods."""

    def __init__(
        self,
        model: "Model",
        reader: InputReader,
        screen: Screen,
        *,
        system: str | None = None,
        options: Options | None = None,
        overflow: Overflow = "roll",
        stats: bool = False,
    ) -> None:
        """With a seed in `options` the same lines give the same answers; each answer is sampled with the next seed."""
        self.model, self.reader, self.screen, self.stats = model, reader, screen, stats
        self.options = options or Options()
        self.conversation: Conversation = model.conversation(system, overflow=overflow)
        self.images: list[Path] = []
        self.unanswered: UserMessage | None = None
        self.ended = False
        self.errors_shown = 0
        self._answers = 0

    def run(self) -> int:
        """Run until the input ends or the user leaves. Returns how many errors were shown."""
        while not self.ended:
            try:
                self.handle(read_input(self.reader, self._prompt()))
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self.reader.interactive:
                    raise
                self.screen.note(HOW_TO_LEAVE)
        return self.errors_shown

    def _prompt(self) -> str:
        count = len(self.images)
        return f"[{count} image{'s' * (count > 1)}] > " if count else "> "

    def handle(self, given: UserInput) -> None:
        """Run the command or send the message of one input. Errors are shown, none is raised."""
        text = given.text if given.quoted else given.text.strip()
        try:
            if not given.quoted and text.startswith("/") and not text.startswith("//"):
                run_command(self, text)
            elif text:
                self.send_message(text if given.quoted or not text.startswith("//") else text[1:])
        except BorealisError as error:
            self.show_error(str(error))

    def show_error(self, text: str) -> None:
        """Show an error, and count it."""
        self.errors_shown += 1
        self.screen.show_error(f"Error: {text}")

    def switch_to(self, conversation: Conversation) -> None:
        """Continue with another conversation."""
        self.conversation = conversation
        self.images.clear()
        self.unanswered = None

    def send_message(self, text: str) -> None:
        """Send a message with the attached images, and show the answer."""
        message = UserMessage(text, tuple(self.images))
        self.images.clear()
        self._send(message)

    def regenerate(self) -> None:
        """Show another answer to the last message. Raises InvalidInput when there is no message yet."""
        if self.unanswered is not None:
            self._send(self.unanswered)
        else:
            self._stream(lambda options: self.conversation.regenerate(options=options))

    def _send(self, message: UserMessage) -> None:
        self.unanswered = message
        self._stream(
            lambda options: self.conversation.send(message.text, images=message.images, options=options),
        )

    def _stream(self, start: Callable[[Options], Answer]) -> None:
        """Show an answer as it is generated. An answer without text leaves the history unchanged."""
        started, first = time.monotonic(), None
        answer: Answer | None = None
        try:
            with Interrupts(self.reader.interactive) as interrupts:
                answer = interrupts.cancel_on_interrupt(start(self._with_seed()))
                for event in answer:
                    if isinstance(event, Text) and event.text:
                        first = first or time.monotonic()
                        self.screen.answer(event.text)
        except EngineDied as error:
            self._end_line(answer)
            self.show_error(f"{error}. The next message starts the model again; /regenerate repeats this one.")
            return
        except BorealisError:
            self._end_line(answer)
            raise
        self._end_line(answer)
        if not (answer.shown or answer.calls):
            self.screen.note("No answer; the message is not kept. /regenerate asks it again.")
        else:
            self.unanswered = None
        self._show_end(answer, started, first)

    def _with_seed(self) -> Options:
        """The options, with the next seed if there is one: /regenerate must not give the same answer again."""
        seed, count = self.options.seed, self._answers
        self._answers += 1
        return self.options if seed is None else replace(self.options, seed=(seed + count) % (MAX_SEED + 1))

    def restart_seeds(self) -> None:
        """Let the next answer use the first seed again."""
        self._answers = 0

    def _end_line(self, answer: Answer | None) -> None:
        if answer is not None and answer.shown and not answer.shown.endswith("\n"):
            self.screen.answer("\n")

    def _show_end(self, answer: Answer, started: float, first: float | None) -> None:
        if answer.finished is None:
            return
        usage, reason = answer.finished.usage, answer.finished.reason
        if self.stats:
            self.screen.note(stats_line(usage, None if first is None else first - started, reason))
        elif reason == "cancelled":
            self.screen.note("(stopped)")
        elif reason == "length":
            self.screen.note("(cut short: the answer reached its limit)")


def stats_line(usage: Usage, first: float | None, reason: str) -> str:
    """The statistics of one answer; `first` is the time to its first text, in seconds."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [f"{usage.prompt_tokens} prompt tokens{cached}", f"{usage.completion_tokens} tokens"]
    if usage.completion_tokens > 1 and usage.completion_seconds > 0:
        parts.append(f"{(usage.completion_tokens - 1) / usage.completion_seconds:.1f} tokens/s")
    if first is not None:
        parts.append(f"first after {first:.2f} s")
    return " · ".join([*parts, reason])


class Interrupts:
    """A context manager: within it, Ctrl-C cancels the answer instead of raising KeyboardInterrupt.

    That is raised after all when the answer does not start within CANCEL_SECONDS, because the model is loaded again,
    and by another Ctrl-C later than that, when the answer goes on because the model's process hangs.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._answer: Answer | None = None
        self._pressed: float | None = None
        self._too_late = threading.Timer(CANCEL_SECONDS, _thread.interrupt_main)
        self._too_late.daemon = True
        self._previous_handler: Any = None

    def __enter__(self) -> "Interrupts":
        if self._enabled:
            self._previous_handler = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._enabled:
            self._too_late.cancel()
            signal.signal(signal.SIGINT, self._previous_handler)

    def cancel_on_interrupt(self, answer: Answer) -> Answer:
        """Let Ctrl-C cancel `answer`, at once if Ctrl-C was pressed before."""
        self._answer = answer
        self._too_late.cancel()
        if self._pressed is not None:
            answer.cancel()
        return answer

    def _press(self, signum: int, frame: FrameType | None) -> None:
        """Cancel from another thread, since this one may hold any lock when the signal comes."""
        now, first = time.monotonic(), self._pressed
        self._pressed = now if first is None else first
        if now - self._pressed >= CANCEL_SECONDS:
            raise KeyboardInterrupt
        if self._answer is not None:
            threading.Thread(target=self._answer.cancel, daemon=True).start()
        elif first is None:
            self._too_late.start()
