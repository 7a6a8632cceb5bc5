"""A view between the steps of llama.cpp's computations, of which a batch has hundreds: tests can act at one of them."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp as llama

from borealis_gguf.runtime.llama.engine import Engine
from borealis_gguf.runtime.process.in_process_model import InProcessModel

low: Any = llama


@contextmanager
def between_steps(inside: Engine | InProcessModel, act: Callable[[int], object]) -> Iterator[None]:
    """`act` is called with the number of each step, from 0 on; then the engine is asked, as ever, whether to go on.

    With a InProcessModel, the callback is put in and out between two steps of its scheduler.
    """
    engine = inside.engine if isinstance(inside, InProcessModel) else inside
    count = 0

    @llama.ggml_abort_callback
    def asked(flag: Any) -> bool:
        nonlocal count
        number, count = count, count + 1
        act(number)
        return bool(engine._strlen(flag))

    def put(callback: Any) -> None:
        low.llama_set_abort_callback(engine.context, callback, ctypes.addressof(engine._abort))

    def safely(callback: Any) -> None:
        inside._scheduler.call(lambda: put(callback)) if isinstance(inside, InProcessModel) else put(callback)

    safely(asked)
    try:
        yield
    finally:
        safely(engine._strlen)


def elsewhere(function: Callable[[], object]) -> None:
    """Run `function` in another thread, and wait for it."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
