"""Short ways to ask a loaded model, for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from borealis_gguf.runtime.events import GenerationRequest, Options, Text
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.process.in_process_model import InProcessModel

Prompt = str | Sequence[dict[str, Any]]


def local(model: Model) -> InProcessModel:
    """The model's inside, of one that lives in this process."""
    assert isinstance(model.backend, InProcessModel)
    return model.backend


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def encode(model: Model, prompt: Prompt, raw: bool = False) -> list[int]:
    """The ids of a conversation, without those of its images."""
    return local(model).encode(GenerationRequest(prompt if raw else messages(prompt), raw))[0]


def stream(model: Model, prompt: Prompt, raw: bool = False, **options: Any) -> list[str]:
    """The pieces of an answer."""
    chosen = Options(**options)
    answer = model.complete(str(prompt), chosen) if raw else model.chat(messages(prompt), chosen)
    return [event.text for event in answer if isinstance(event, Text)]


def generate(model: Model, prompt: Prompt, raw: bool = False, **options: Any) -> str:
    return "".join(stream(model, prompt, raw, **options))


def alone(path: Path, prompt: Prompt, raw: bool = False, options: dict[str, Any] | None = None, **loading: Any) -> str:
    """The answer of a model in a process of its own."""
    with load(path, isolate=True, **loading) as model:
        return generate(model, prompt, raw, **(options or {}))
