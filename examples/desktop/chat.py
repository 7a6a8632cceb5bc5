"""A small chat window; `python chat.py [MODEL.gguf]`. What an app needs to keep in mind stands in `app.py`."""

import argparse
import signal
import sys
import threading
import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import filedialog, ttk
from typing import Any

from app import App, Turn
from words import word

import borealis_gguf as borealis

COLOURS = {"you": "#1f5f8b", "model": "#2f6f4f", "error": "#b3261e"}


class Window(tk.Toplevel):
    """One conversation."""

    def __init__(self, app: App) -> None:
        super().__init__(app.root)
        self.app = app
        self.conversation: borealis.Conversation | None = None
        self.turn = Turn()
        self.answering = False
        self._build()
        self.protocol("WM_DELETE_WINDOW", self.close)
        self.bind("<Escape>", lambda _: self.stop())
        app.windows.append(self)
        self.clear()

    def _build(self) -> None:
        self.geometry("720x560")
        top, bottom = ttk.Frame(self, padding=8), ttk.Frame(self, padding=8)
        for name, command in (("open", self.choose), ("new", self.clear), ("window", lambda: Window(self.app))):
            ttk.Button(top, text=word(name), command=command).pack(side="left", padx=(0, 6))
        self.status = ttk.Label(self, padding=(10, 0, 10, 8), foreground="#666666")
        self.bar = ttk.Progressbar(self, maximum=1.0)
        self.text = tk.Text(self, font="TkDefaultFont", wrap="word", relief="flat", padx=14, pady=4, spacing2=3)
        for tag, colour in COLOURS.items():
            self.text.tag_configure(tag, foreground=colour, spacing1=10)
        scroll = ttk.Scrollbar(self, command=self.text.yview)
        self.text.configure(yscrollcommand=scroll.set)
        self.entry = tk.Text(bottom, font="TkDefaultFont", height=3, width=10, wrap="word", padx=6, pady=6, undo=True)
        self.entry.bind("<Return>", lambda _: self.submit())
        self.entry.bind("<Shift-Return>", lambda _: None)  # a new line, as ever
        self.button = ttk.Button(bottom)
        self.button.pack(side="right", fill="y", padx=(8, 0))
        self.entry.pack(side="left", fill="both", expand=True)
        top.pack(fill="x")
        self.status.pack(side="bottom", fill="x")
        bottom.pack(side="bottom", fill="x")
        scroll.pack(side="right", fill="y")
        self.text.pack(fill="both", expand=True)

    def choose(self) -> None:
        """Ask for a model file."""
        if name := filedialog.askopenfilename(parent=self, filetypes=[("GGUF", "*.gguf")]):
            self.app.open(Path(name))

    def clear(self, error: str = "") -> None:
        """A new conversation; what may still come for the old one is not shown."""
        self.stop()
        self.turn = Turn()
        self.conversation = self.app.model.conversation() if self.app.model is not None else None
        self.text.configure(state="normal")
        self.text.delete("1.0", "end")
        self.show(error, "error")
        self.progress(0.0)
        self._rest()

    def progress(self, part: float) -> None:
        """So much of the model is loaded, 0 to 1."""
        self.bar.configure(value=part)

    def _rest(self, status: str = "", answering: bool = False) -> None:
        """Show what can be done now."""
        model, loading, self.answering = self.app.model, self.app.loading, answering
        path = loading or (model.path if model else Path("Borealis"))
        self.title(path.stem)
        idle = word("loading", path.name) if loading else word("ready" if model else "empty")
        self.status.configure(text=status or idle)
        command, name = (self.stop, "stop") if answering else (self.submit, "send")
        self.button.configure(text=word(name), command=command, state="normal" if model else "disabled")
        if loading:
            self.bar.pack(side="bottom", fill="x", padx=10, pady=4, before=self.text)
        else:
            self.bar.pack_forget()
        self.entry.focus_set()

    def show(self, text: str, tag: str = "") -> None:
        """Append text, and scroll along unless the reader has scrolled up."""
        follow = self.text.yview()[1] > 0.999
        self.text.configure(state="normal")
        self.text.insert("end", text, tag)
        self.text.configure(state="disabled")
        if follow:
            self.text.see("end")

    def submit(self) -> str:
        """Ask what is written; a thread waits for the answer."""
        said, conversation = self.entry.get("1.0", "end").strip(), self.conversation
        if said and conversation is not None and not self.answering:
            self.entry.delete("1.0", "end")
            for text, tag in ((word("you"), "you"), (said, ""), (conversation.model.path.stem, "model")):
                self.show(f"{text}\n", tag)
            self._rest(word("answering"), answering=True)
            self.turn = Turn()
            threading.Thread(target=self._listen, args=(conversation, said, self.turn), daemon=True).start()
        return "break"  # Tk shall not do more about the key

    def _listen(self, conversation: "borealis.Conversation", said: str, turn: Turn) -> None:
        """In a thread: the answer, piece by piece."""

        def soon(function: Callable[..., object], *arguments: Any) -> None:
            self.app.soon(lambda: function(*arguments) if turn is self.turn else None)

        try:
            with conversation.send(said) as answer:  # starts the model's process again if it had died
                turn.begin(answer)
                for event in answer:
                    if isinstance(event, borealis.Text):
                        soon(self.show, event.text)
                    elif isinstance(event, borealis.Finished):
                        soon(self._finished, event.usage)
        except Exception as error:
            soon(self._failed, str(error), said)

    def _finished(self, usage: "borealis.Usage") -> None:
        self.show("\n")
        self._rest(word("done", usage.completion_tokens, usage.completion_tokens / (usage.completion_seconds or 1.0)))

    def _failed(self, error: str, said: str) -> None:
        self.show(f"\n{error}\n", "error")
        self.entry.insert("1.0", said)  # to be sent again: that may well work
        self._rest()

    def stop(self) -> None:
        """Cancel the answer."""
        self.turn.stop()

    def close(self) -> None:
        """The last window takes the app with it."""
        self.stop()
        self.turn = Turn()
        self.app.windows.remove(self)
        if not self.app.windows:
            return self.app.close()
        self.destroy()


def ask(app: App, window: Window, question: str) -> None:
    """Ask as a person would, print what the window shows, and end."""
    if question and app.model:
        window.entry.insert("1.0", question)
        window.submit()
        question = ""
    elif not (app.loading or window.answering):
        print(window.text.get("1.0", "end").strip())
        app.status = 1 if window.text.tag_ranges("error") else 0
        return app.close()
    app.root.after(50, ask, app, window, question)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Chat with a Borealis model.")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--ask", default="", help="ask this, print what the window shows, and end")
    args = parser.parse_args()
    app = App()
    signal.signal(signal.SIGINT, lambda *_: app.soon(app.close))
    window = Window(app)
    if args.model:
        app.open(args.model)
    if args.ask:
        ask(app, window, args.ask)
    app.root.mainloop()
    return app.status


if __name__ == "__main__":
    sys.exit(main())
