"""`load`, and the `Model` it returns: the API of apps, the command line and the server."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..usable_cores import usable_cores
from .answer import Answer, start_answer
from .conversation import Conversation
from .events import EventSink, GenerationRequest, ModelInfo, Options, Overflow
from .process.model_loading import LoadOptions, load_in_process
from .prompting.chat_template import Message

if TYPE_CHECKING:
    from .llama.loading import LoadProgress


class Backend(Protocol):
    """A loaded model: an `InProcessModel` or an `IsolatedModel`."""

    @property
    def info(self) -> ModelInfo: ...
    def start(self, request: GenerationRequest, sink: EventSink) -> Callable[[], None]: ...
    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]: ...
    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, ids: Sequence[int]) -> str: ...
    def save(self, path: str, conversation: Mapping[str, Any]) -> None: ...
    def restore(self, path: str) -> dict[str, Any]: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class Model:
    """A loaded GGUF; use it in a `with` (or `async with`), or call `close()`. Safe to use from several threads."""

    def __init__(self, path: Path, backend: Backend) -> None:
        self.path = path
        self.backend = backend

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> "Model":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """End all answers and free the memory; a second call does nothing."""
        self.backend.close()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    @property
    def context(self) -> int:
        """Tokens a conversation can hold."""
        return self.backend.info.context

    @property
    def parallel(self) -> int:
        """Answers that are made at once; further requests wait."""
        return self.backend.info.parallel

    @property
    def vision(self) -> bool:
        """Whether the model takes images: it has a vision tower (an mmproj)."""
        return self.backend.info.vision

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template; without one it can only complete."""
        return self.backend.info.chat

    @property
    def placement(self) -> str:
        """One line: where the model was put, and why."""
        return self.backend.info.placement

    def chat(
        self,
        messages: Sequence[Message],
        options: Options | None = None,
        *,
        overflow: Overflow = "error",
        on_end: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """The answer to a whole conversation. `on_end` is called once, when it is finished or cancelled.

        Raises InvalidInput for an invalid request, and Busy when too many wait, or when the model's process died and
        the next one takes more than a minute to load.
        """
        options = options or Options()
        request = GenerationRequest(messages, options=options, overflow=overflow)
        return start_answer(Answer(options, on_end), lambda sink: self.backend.start(request, sink))

    def complete(self, prompt: str | Sequence[int], options: Options | None = None) -> Answer:
        """The continuation of a text or of token ids, without the chat template."""
        options = options or Options()
        request = GenerationRequest(prompt, True, options)
        return start_answer(Answer(options), lambda sink: self.backend.start(request, sink))

    async def achat(
        self, messages: Sequence[Message], options: Options | None = None, *, overflow: Overflow = "error"
    ) -> Answer:
        """`chat` without blocking the event loop, even where the model's process must be restarted."""
        return await asyncio.to_thread(self.chat, messages, options, overflow=overflow)

    async def acomplete(self, prompt: str | Sequence[int], options: Options | None = None) -> Answer:
        """`complete` without blocking the event loop."""
        return await asyncio.to_thread(self.complete, prompt, options)

    def conversation(
        self, system: str | None = None, *, overflow: Overflow = "error", options: Options | None = None
    ) -> Conversation:
        """A new conversation, with a system message if one is given."""
        first = [] if system is None else [{"role": "system", "content": system}]
        return Conversation(self, first, overflow=overflow, options=options)

    def load_conversation(self, path: str | Path, *, options: Options | None = None) -> Conversation:
        """The conversation that `Conversation.save` wrote. Raises InvalidInput for any other file."""
        kept = self.backend.restore(str(Path(path).absolute()))
        return Conversation(self, kept["messages"], overflow=kept["overflow"], options=options)

    async def aload_conversation(self, path: str | Path, *, options: Options | None = None) -> Conversation:
        """`load_conversation` without blocking the event loop."""
        return await asyncio.to_thread(self.load_conversation, path, options=options)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """One vector of length 1 per text, float32 [texts, n_embd], and how many tokens the texts are together."""
        return self.backend.embed(texts)

    async def aembed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """`embed` without blocking the event loop."""
        return await asyncio.to_thread(self.embed, texts)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without BOS; names of control tokens stay text."""
        return self.backend.tokenize(text)

    async def atokenize(self, text: str) -> list[int]:
        """`tokenize` without blocking the event loop."""
        return await asyncio.to_thread(self.tokenize, text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens have none."""
        return self.backend.detokenize(ids)

    async def adetokenize(self, ids: Sequence[int]) -> str:
        """`detokenize` without blocking the event loop."""
        return await asyncio.to_thread(self.detokenize, ids)

    def stats(self) -> dict[str, float]:
        """Answers running and waiting, tokens in the KV cache, and totals since the start; comes within a second.

        `up` is 0 while the model's process is started again or does not reply: then these are the last ones known.
        """
        return self.backend.stats()

    async def astats(self) -> dict[str, float]:
        """`stats` without blocking the event loop."""
        return await asyncio.to_thread(self.stats)


def load(
    model: str | Path,
    *,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    context: int | None = None,
    parallel: int = 1,
    threads: int | None = None,
    seed: int | None = None,
    sampling: Mapping[str, float] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    mmproj: str | Path | None = None,
    extra_buffers: bool | None = None,
    isolate: bool = False,
    batch_invariant: bool | None = None,
    max_queue: int | None = None,
    on_progress: "LoadProgress | None" = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a GGUF for chatting.

    model: a file, a folder with one, or a Hub id with a preset (owner/name:Q4_K_M). device, gpu_layers: see
    `choose_placement`. context: tokens a conversation can hold; None is the model's own, at most 8192. parallel:
    answers made at once. threads: None is the CPUs this process may use. seed: makes answers repeatable; None is a
    random one for each. sampling: fields of `Sampling` that replace the file's. loras: adapter GGUFs, each with its
    scale. mmproj: the vision tower's file; None takes the one beside the model with its name. extra_buffers: None asks
    the probe (see `cpu_probe`). isolate: in a child process, so that this one survives a crash of native code.
    batch_invariant: a greedy answer does not depend on other answers computed with it; None is yes for more than one
    answer at once on the CPU, where long prompts become slower. max_queue: more waiting requests than this raise Busy.
    on_progress: see `LoadProgress`. on_download: called with bytes fetched and bytes in all, for a model on the Hub.
    Raises InvalidInput for a file that cannot be used, BorealisError when llama.cpp cannot load it.
    """
    from .find import find_model

    path = find_model(model, on_download)
    options = LoadOptions(
        device=device,
        gpu_layers=gpu_layers,
        context=context,
        parallel=parallel,
        threads=usable_cores() if threads is None else threads,
        seed=seed,
        sampling=dict(sampling or {}),
        loras=[(str(adapter), scale) for adapter, scale in loras],
        mmproj=str(mmproj) if mmproj else None,
        extra_buffers=extra_buffers,
        max_queue=max_queue,
        batch_invariant=batch_invariant,
    )
    if not isolate:
        return Model(path, load_in_process(path, options, on_progress))
    from .process.isolated_model import IsolatedModel

    return Model(path, IsolatedModel(path, asdict(options), on_progress))


async def aload(model: str | Path, **options: Any) -> Model:
    """`load` without blocking the event loop; `on_progress` and `on_download` are called from another thread."""
    return await asyncio.to_thread(load, model, **options)
