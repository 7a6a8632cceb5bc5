"""The loop of a chat: what is typed becomes a command or a message, and the answer streams."""

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
from .terminal_io import Reader, Said, Screen, read_input

if TYPE_CHECKING:
    from ..model import Model

HOW_TO_LEAVE = "Ctrl-D or /quit leaves."


def greeting(model: "Model") -> str:
    """What a chat begins with. Raises InvalidInput for a model that cannot chat."""
    if not model.has_template:
        raise InvalidInput(f"{model.path}: has no chat template, so it is no chat model; see run --raw")
    sees = " · sees images" if model.vision else ""
    where = f"{model.placement}\n" if model.placement else ""
    return f"{where}{model.path.name} · {model.context} tokens{sees} · /help tells what can be typed."


@dataclass(frozen=True, slots=True)
class Message:
    """What the user says, and the images that go with it."""

    text: str
    images: tuple[Path, ...] = ()


class Chat:
    """One person's conversation with a loaded model. `run` is the loop; the rest is for the commands."""

    def __init__(
        self,
        model: "Model",
        reader: Reader,
        screen: Screen,
        *,
        system: str | None = None,
        options: Options | None = None,
        overflow: Overflow = "roll",
        stats: bool = False,
    ) -> None:
        """With a seed in `options` the same lines give the same answers, each of them drawn with the next seed."""
        self.model, self.reader, self.screen, self.stats = model, reader, screen, stats
        self.options = options or Options()
        self.conversation: Conversation = model.conversation(system, overflow=overflow)
        self.images: list[Path] = []
        self.unanswered: Message | None = None
        self.left = False
        self.faults = 0
        self._answers = 0

    def run(self) -> int:
        """Until the input ends or the user leaves; how many errors were told."""
        while not self.left:
            try:
                self.handle(read_input(self.reader, self._prompt()))
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self.reader.interactive:
                    raise
                self.screen.note(HOW_TO_LEAVE)
        return self.faults

    def _prompt(self) -> str:
        count = len(self.images)
        return f"[{count} image{'s' * (count > 1)}] > " if count else "> "

    def handle(self, said: Said) -> None:
        """Do what one input says. Every error is told, none is raised."""
        text = said.text if said.quoted else said.text.strip()
        try:
            if not said.quoted and text.startswith("/") and not text.startswith("//"):
                run_command(self, text)
            elif text:
                self.say(text if said.quoted or not text.startswith("//") else text[1:])
        except BorealisError as error:
            self.fault(str(error))

    def fault(self, text: str) -> None:
        """Tell what went wrong."""
        self.faults += 1
        self.screen.fault(f"Error: {text}")

    def use(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.conversation = conversation
        self.images.clear()
        self.unanswered = None

    def say(self, text: str) -> None:
        """A message, with the images that wait."""
        message = Message(text, tuple(self.images))
        self.images.clear()
        self._send(message)

    def again(self) -> None:
        """Another answer; a message that got none is asked again. Raises InvalidInput when nothing was said."""
        if self.unanswered is not None:
            self._send(self.unanswered)
        else:
            self._stream(lambda options: self.conversation.regenerate(options=options))

    def _send(self, message: Message) -> None:
        self.unanswered = message
        self._stream(
            lambda options: self.conversation.send(message.text, images=message.images, options=options),
        )

    def _stream(self, begin: Callable[[Options], Answer]) -> None:
        """Show an answer as it comes. Without any text in it the history stays as it was."""
        began, first = time.monotonic(), None
        answer: Answer | None = None
        try:
            with Interrupts(self.reader.interactive) as interrupts:
                answer = interrupts.stops(begin(self._with_seed()))
                for event in answer:
                    if isinstance(event, Text) and event.text:
                        first = first or time.monotonic()
                        self.screen.answer(event.text)
        except EngineDied as error:
            self._end_line(answer)
            self.fault(f"{error}. The next message starts the model again; /regenerate repeats this one.")
            return
        except BorealisError:
            self._end_line(answer)
            raise
        self._end_line(answer)
        if not (answer.shown or answer.calls):
            self.screen.note("No answer; the message is not kept. /regenerate asks it again.")
        else:
            self.unanswered = None
        self._tell(answer, began, first)

    def _with_seed(self) -> Options:
        """The options; with a seed, the next one, or /regenerate would give the same answer again."""
        seed, count = self.options.seed, self._answers
        self._answers += 1
        return self.options if seed is None else replace(self.options, seed=(seed + count) % (MAX_SEED + 1))

    def reseed(self) -> None:
        """Begin to count seeds anew."""
        self._answers = 0

    def _end_line(self, answer: Answer | None) -> None:
        if answer is not None and answer.shown and not answer.shown.endswith("\n"):
            self.screen.answer("\n")

    def _tell(self, answer: Answer, began: float, first: float | None) -> None:
        if answer.finished is None:
            return
        usage, reason = answer.finished.usage, answer.finished.reason
        if self.stats:
            self.screen.note(stats_line(usage, None if first is None else first - began, reason))
        elif reason == "cancelled":
            self.screen.note("(stopped)")
        elif reason == "length":
            self.screen.note("(cut short: the answer reached its limit)")


def stats_line(usage: Usage, first: float | None, reason: str) -> str:
    """The figures of one answer; `first` is the seconds to its first text."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [f"{usage.prompt_tokens} prompt tokens{cached}", f"{usage.completion_tokens} tokens"]
    if usage.completion_tokens > 1 and usage.completion_seconds > 0:
        parts.append(f"{(usage.completion_tokens - 1) / usage.completion_seconds:.1f} tokens/s")
    if first is not None:
        parts.append(f"first after {first:.2f} s")
    return " · ".join([*parts, reason])


class Interrupts:
    """While it is entered, Ctrl-C stops the answer and nothing else."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._answer: Answer | None = None
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        if self._wanted:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._wanted:
            signal.signal(signal.SIGINT, self._before)

    def stops(self, answer: Answer) -> Answer:
        """Say which answer is meant; it is stopped at once if Ctrl-C came before it."""
        self._answer = answer
        if self._pressed:
            answer.cancel()
        return answer

    def _press(self, signum: int, frame: FrameType | None) -> None:
        """A thread cancels: this one may hold any lock just now."""
        self._pressed = True
        if self._answer is not None:
            threading.Thread(target=self._answer.cancel, daemon=True).start()
