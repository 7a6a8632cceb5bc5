"""Extends the chat template by the whitespace normalization that a checkpoint's tokenizer does and llama.cpp lacks.

A tokenizer's normalizer, which may prepend a space or add one after each newline, runs on every stretch of text between
control tokens. llama.cpp's byte-level tokenizers have no normalizer, so the template rewrites its rendered text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..tokenizers.byte_level_bpe import Bpe
from ..tokenizers.pre_tokenizer import SPACE_IN_FRONT, Match
from ..tokenizers.preprocessing import described
from ..tokenizers.special_tokens import token_text
from .chat_template import ChatTemplate

MARK = "\ufdd0"
"""A Unicode noncharacter, which separates stretches and occurs in no text."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rewriting step called `name`: as Jinja code on the variable `part`, and as a Python function."""

    name: str
    jinja: str
    apply: Callable[[str], str]


def emulated_steps(match: Match) -> tuple[Step, ...]:
    """Returns those steps that `match` leaves out and a template can emulate."""
    steps = [step for entry in match.normalizer if (step := _emulated_step(entry))]
    if SPACE_IN_FRONT in match.others:
        jinja = "{% if not part.startswith(' ') %}{% set part = ' ' ~ part %}{% endif %}"
        steps.append(Step(SPACE_IN_FRONT, jinja, lambda text: text if text.startswith(" ") else " " + text))
    return tuple(steps)


def emulate(template: ChatTemplate, bpe: Bpe, config: Mapping[str, Any]) -> ChatTemplate:
    """Returns `template` with `emulated_steps` applied to each stretch; `config` is tokenizer_config.json."""
    steps = "".join(step.jinja for step in emulated_steps(bpe.match))
    if not steps or not template:
        return template
    named = {text for value in config.values() if (text := token_text(value))}
    # Tokens with "normalized" are found after the normalizer has run, so they do not end a stretch.
    texts = [token["content"] for token in bpe.added if not token.get("normalized")]

    def wrapped(source: str) -> str:
        return _wrapped_template(source, steps, [text for text in texts if text in source or text in named])

    if isinstance(template, str):
        return wrapped(template)
    return tuple((name, wrapped(source)) for name, source in template)


def _emulated_step(step: Mapping[str, Any]) -> Step | None:
    """Translates a step of a normalizer; None if a template cannot emulate it."""
    name, pattern, content = described(step), step.get("pattern"), str(step.get("content"))
    if step.get("type") == "Prepend":
        start = str(step.get("prepend"))
        return Step(name, f"{{% set part = {_literal(start)} ~ part %}}", lambda text: start + text)
    if step.get("type") != "Replace" or not isinstance(pattern, dict):
        return None
    if "String" in pattern:
        old = str(pattern["String"])
        jinja = f"{{% set part = part.replace({_literal(old)}, {_literal(content)}) %}}"
        return Step(name, jinja, lambda text: text.replace(old, content))
    if pattern.get("Regex") in (" *\n", " *\\n") and content == "\n":
        jinja = (
            "{% set part %}{% for line in part.split('\\n') %}"
            "{{ line if loop.last else line.rstrip(' ') ~ '\\n' }}{% endfor %}{% endset %}"
        )
        return Step(name, jinja, lambda text: re.sub(" *\n", "\n", text))
    return None


def _wrapped_template(template: str, steps: str, texts: Sequence[str]) -> str:
    """Returns a template that renders `template`, splits the result at `texts`, and rewrites each stretch between."""
    if template.endswith("\n"):  # Jinja drops this newline when rendering
        template = template[:-1]
    if template.startswith("\n"):  # a block tag in front would remove the newline
        template = "{{ '\\n' }}" + template[1:]
    mark_tokens = "".join(f".replace({_literal(text)}, {_literal(MARK + text + MARK)})" for text in texts)
    return (
        f"{{% set rendered %}}{template}{{% endset %}}"
        f"{{% for part in rendered{mark_tokens}.split({_literal(MARK)}) %}}"
        f"{{% if part != '' and part not in [{', '.join(map(_literal, texts))}] %}}{steps}{{% endif %}}"
        "{{ part }}{% endfor %}"
    )


def _literal(text: Any) -> str:
    return json.dumps(str(text), ensure_ascii=False)
