"""An answer whose reader, callbacks or parser fail: it ends all the same, and everybody who waits is woken."""

import asyncio
import threading
from typing import Any

import pytest

from borealis_gguf.errors import BorealisError
from borealis_gguf.runtime.answer import Answer
from borealis_gguf.runtime.events import Finished, Options, Text, Usage

from .test_broken_process import Later

END = Finished("stop", Usage())


def test_a_callback_that_raises_stops_no_other() -> None:
    answer, woken = Answer(Options()), []

    def fail() -> None:
        raise ValueError("odd")

    answer.when_ready(fail)
    answer.when_ready(lambda: woken.append(True))
    answer.push(Text("Hei"))
    assert woken == [True]
    answer.push(END)
    assert answer.text() == "Hei"


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3)], ids=repr)
def test_what_the_end_raises_reaches_the_readers(error: BaseException) -> None:
    def fail(_: Answer) -> None:
        raise error

    async def read(answer: Answer) -> Any:
        threading.Timer(0.1, answer.push, [END]).start()
        try:
            await answer.result()
        except BaseException as raised:
            return raised

    answer = Answer(Options(), fail)
    waiting = Later(answer.text)
    assert asyncio.run(asyncio.wait_for(read(answer), 5)) is error
    assert waiting.end(5) is error


def test_a_parser_that_fails_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for method, event in (("push", Text("Hei")), ("end", END)):
        answer = Answer(Options())

        def fail(*_: Any) -> None:
            raise RecursionError("too deep")

        monkeypatch.setattr(answer._parser, method, fail)
        answer.push(event)
        with pytest.raises(BorealisError, match="the answer cannot be read: RecursionError"):
            answer.text()
