"""Sample conversations, chosen because chat templates tend to render them in different ways."""

from typing import Any

Conversation = list[dict[str, Any]]

_IMAGE = {"type": "image"}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _model(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


CONVERSATIONS: dict[str, Conversation] = {
    "one question": [_user("Hva heter hovedstaden i Norge?")],
    "a system message": [_system("Svar på nynorsk, og kort."), _user("Kven skreiv Peer Gynt?")],
    "several turns": [
        _user("Hei"),
        _model("Hei! Hva kan jeg hjelpe med?"),
        _user("Et dikt"),
        _model("Sol"),
        _user("Til"),
    ],
    "a system message and several turns": [
        _system("Du er en hjelper."),
        _user("Hei"),
        _model("God dag."),
        _user("Hvordan går det?"),
    ],
    "an answer last": [_user("Hei"), _model("Hei på deg")],
    "an image": [_user([_IMAGE, _text("Hva ser du på bildet?")])],
    "two images between texts": [
        _user([_text("Dette: "), _IMAGE, _text(" og dette: "), _IMAGE, _text(" Hva er forskjellen?")])
    ],
    "parts of text in every role": [
        _system([_text("Vær vennlig.")]),
        _user([_text("Én"), _text("to")]),
        _model([_text("tre")]),
        _user([_text("fire")]),
    ],
    "an empty question": [_user("")],
    "an empty system message": [_system(""), _user("Hei")],
    "an empty answer": [_user("Hei"), _model(""), _user("Hallo?")],
    "padded texts": [
        _system("  \n Svar kort. \n\n"),
        _user("\n\n  Hei  \t\n"),
        _model("   Hei   "),
        _user(" På deg\n"),
    ],
    "lines and indents": [_user("Rett koden:\n\n    def f():\n        return 1\n\n\nTakk!\n")],
    "quotes and braces": [_user("{{ ikke }} {% en %} {# mal #} «her» \"eller\" 'der' \\n <b>&amp;</b>")],
    "two questions in a row": [_user("Hei"), _user("Er du der?")],
    "an answer first": [_model("Hei!"), _user("Hei")],
    "only a system message": [_system("Svar kort.")],
    "no message": [],
}
