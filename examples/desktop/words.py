"""What the window says, in Bokmål, or in English where the system speaks another language."""

import locale
from typing import Any

WORDS = {
    "open": ("Åpne modell …", "Open model …"),
    "new": ("Ny samtale", "New conversation"),
    "window": ("Nytt vindu", "New window"),
    "send": ("Send", "Send"),
    "stop": ("Stopp", "Stop"),
    "you": ("Du", "You"),
    "empty": ("Åpne en GGUF-fil for å begynne.", "Open a GGUF file to begin."),
    "loading": ("Laster {} …", "Loading {} …"),
    "ready": ("Klar. Enter sender, Shift+Enter gir ny linje.", "Ready. Enter sends, Shift+Enter breaks the line."),
    "answering": ("Svarer … Esc stopper.", "Answering … Esc stops."),
    "done": ("{} tokener, {:.0f} i sekundet.", "{} tokens, {:.0f} a second."),
}
NORWEGIAN = (locale.getlocale()[0] or "nb").lower().startswith(("nb", "nn", "no"))


def word(name: str, *values: Any) -> str:
    """A label in the user's language."""
    return WORDS[name][0 if NORWEGIAN else 1].format(*values)
