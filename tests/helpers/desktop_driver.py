"""Drives the desktop example by its own widgets, as a person would; prints what was seen as JSON."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "desktop"))

from app import App  # type: ignore[import-not-found]
from chat import Window  # type: ignore[import-not-found]

seen: dict[str, Any] = {}


def wait(app: App, until: Callable[[], Any], seconds: float = 60) -> None:
    """Let the windows live until something is so."""
    deadline = time.monotonic() + seconds
    while not until():
        app.root.update()
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def shown(window: Window) -> str:
    return window.text.get("1.0", "end")


def ask(app: App, window: Window, text: str) -> None:
    window.entry.insert("1.0", text)
    press_return(app, window)


def press_return(app: App, window: Window) -> None:
    """Again until it is heard: where no window manager is, a window that opens takes the keys from another."""

    def heard() -> bool:
        window.update()
        window.entry.focus_force()
        window.entry.event_generate("<Return>")
        return window.answering

    wait(app, heard)


def drive(app: App, model: Path) -> None:
    window = Window(app)
    app.open(model)
    wait(app, lambda: app.model is not None)
    seen["title"] = window.title()
    ask(app, window, "Skriv om blåbær på fjellet.")
    wait(app, lambda: not window.answering and window.conversation.messages)
    seen["answer"], seen["messages"] = shown(window), window.conversation.messages
    other = Window(app)
    ask(app, other, "Hei")
    ask(app, window, "Meir.")
    wait(app, lambda: not (window.answering or other.answering))
    seen["two"] = [len(window.conversation.messages), len(other.conversation.messages)]
    before = shown(window)
    ask(app, window, "ord " * 1500)
    window.event_generate("<Escape>")
    begun = time.monotonic()
    wait(app, lambda: not window.answering)
    seen["stopped"] = time.monotonic() - begun
    seen["kept"] = shown(window).startswith(before.rstrip("\n"))
    os.kill(app.model.backend._worker._process.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    ask(app, other, "Er du der?")
    wait(app, lambda: not other.answering)
    seen["error"] = shown(other)
    if "Er du der?" in other.entry.get("1.0", "end"):  # put back, to be sent again
        press_return(app, other)
        wait(app, lambda: not other.answering)
    seen["again"] = len(other.conversation.messages)
    child = app.model.backend._worker._process
    ask(app, window, "Skriv mykje.")
    wait(app, lambda: window.answering)
    for each in (window, other):
        each.close()
    seen["closed"] = child.poll() is not None


if __name__ == "__main__":
    drive(App(), Path(sys.argv[1]))
    print(json.dumps(seen))
