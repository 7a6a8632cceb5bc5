"""What all windows share: the model, which lives in a process of its own, and the way from threads to the windows."""

import queue
import threading
import tkinter as tk
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import borealis_gguf as borealis  # instant: its parts are imported when they are used, here in a thread


class View(Protocol):
    """A window, as the app sees it."""

    def stop(self) -> None: ...
    def clear(self, error: str = "") -> None: ...
    def progress(self, part: float) -> None: ...


class Turn:
    """One answer, which can be stopped before it has begun."""

    def __init__(self) -> None:
        self.answer: borealis.Answer | None = None
        self.stopped = False

    def begin(self, answer: "borealis.Answer") -> None:
        """In a thread: this is the answer."""
        self.answer = answer
        if self.stopped:
            answer.cancel()

    def stop(self) -> None:
        """Cancel it; what there is of it stays."""
        self.stopped = True
        if self.answer is not None:
            self.answer.cancel()


class App:
    """What may take longer than a frame is done in a thread. Threads never touch a widget: they use `soon`."""

    def __init__(self) -> None:
        self.root = tk.Tk()
        self.root.withdraw()  # every window is a Toplevel; the last one to close ends the app
        self.windows: list[View] = []
        self.model: borealis.Model | None = None
        self.loading: Path | None = None
        self.status = 0  # what the process ends with
        self.closed = False
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._pump()

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the windows' loop call this. May be used from any thread."""
        self._calls.put(partial(function, *arguments))

    def _pump(self) -> None:
        self._timer = self.root.after(15, self._pump)
        until = monotonic() + 0.01  # the rest waits: typing must stay smooth
        while not (self.closed or self._calls.empty()) and monotonic() < until:
            self._calls.get()()

    def open(self, path: Path) -> None:
        """Load a model in place of the one before."""
        if self.loading is None:
            before, self.model, self.loading = self.model, None, path
            self._tell()
            threading.Thread(target=self._load, args=(path, before), daemon=True).start()

    def _load(self, path: Path, before: "borealis.Model | None") -> None:
        """In a thread."""
        try:
            if before is not None:
                before.close()
            self.soon(self._loaded, borealis.load(path, isolate=True, parallel=4, on_progress=self._progress))
        except Exception as error:
            self.soon(self._loaded, None, str(error))

    def _progress(self, part: float) -> None:
        """In a thread, from `load`; what is raised here ends the loading."""
        if self.closed:
            raise borealis.Cancelled("the app is closing")
        self.soon(lambda: [window.progress(part) for window in self.windows])

    def _loaded(self, model: "borealis.Model | None", error: str = "") -> None:
        self.model, self.loading = model, None
        self._tell(error)

    def _tell(self, error: str = "") -> None:
        for window in self.windows:
            window.clear(error)

    def close(self) -> None:
        """End the answers, the windows and the model's process."""
        self.closed = True
        self.root.after_cancel(self._timer)
        self.root.destroy()
        if self.model is not None:
            self.model.close()
