"""Emulates in the chat template the spaces that a checkpoint's tokenizer adds to a text before it splits it.

llama.cpp's byte-level tokenizers take a text as it is. A tokenizer that prepends a space, or puts one after each
newline, does so in every stretch of text between control tokens; a template can do the same to what it has rendered.
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
"""Never a character: it can stand between the stretches."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done to a stretch of text, called `name`: as Jinja, to the variable `part`, and as a function."""

    name: str
    jinja: str
    apply: Callable[[str], str]


def emulated_steps(match: Match) -> tuple[Step, ...]:
    """What templates can do of all that `match` leaves out."""
    steps = [step for entry in match.normalizer if (step := _step(entry))]
    if SPACE_IN_FRONT in match.others:
        jinja = "{% if not part.startswith(' ') %}{% set part = ' ' ~ part %}{% endif %}"
        steps.append(Step(SPACE_IN_FRONT, jinja, lambda text: text if text.startswith(" ") else " " + text))
    return tuple(steps)


def emulate(template: ChatTemplate, bpe: Bpe, config: Mapping[str, Any]) -> ChatTemplate:
    """`template`, doing `emulated_steps` to each stretch of text; `config` is tokenizer_config.json."""
    steps = "".join(step.jinja for step in emulated_steps(bpe.match))
    if not steps or not template:
        return template
    named = {text for value in config.values() if (text := token_text(value))}
    # Tokens that are cut out after the normalizer has run do not end a stretch.
    texts = [token["content"] for token in bpe.added if not token.get("normalized")]

    def wrapped(source: str) -> str:
        return _wrapped(source, steps, [text for text in texts if text in source or text in named])

    if isinstance(template, str):
        return wrapped(template)
    return tuple((name, wrapped(source)) for name, source in template)


def _step(step: Mapping[str, Any]) -> Step | None:
    """A step of a normalizer; None where a template cannot do it."""
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


def _wrapped(template: str, steps: str, texts: Sequence[str]) -> str:
    """`template`, its result cut at `texts`, and each stretch between them rewritten."""
    if template.endswith("\n"):  # the one that rendering drops
        template = template[:-1]
    if template.startswith("\n"):  # a block at the start would swallow it
        template = "{{ '\\n' }}" + template[1:]
    cut = "".join(f".replace({_literal(text)}, {_literal(MARK + text + MARK)})" for text in texts)
    return (
        f"{{% set rendered %}}{template}{{% endset %}}"
        f"{{% for part in rendered{cut}.split({_literal(MARK)}) %}}"
        f"{{% if part != '' and part not in [{', '.join(map(_literal, texts))}] %}}{steps}{{% endif %}}"
        "{{ part }}{% endfor %}"
    )


def _literal(text: Any) -> str:
    return json.dumps(str(text), ensure_ascii=False)
