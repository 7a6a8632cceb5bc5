"""`load`, and the model it gives: what an app, the command line and the server all use."""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..checkpoint.gguf import GGUFFile, read_gguf
from ..checkpoint.gguf_naming import mmproj_beside
from ..errors import BorealisError, InvalidInput
from ..usable_cores import usable_cores
from .answer import Answer, begun
from .conversation import Conversation
from .events import Ask, Event, Info, Options, Overflow
from .fitting.cpu_probe import extra_buffers_work
from .fitting.placement import Placement, choose, model_params
from .loras import checked_loras
from .process.in_process_model import MAX_SEED, TEMPLATE_KEY, Local, checked_seed
from .prompting.chat_template import ChatTemplate, Message
from .prompting.sampling_settings import override, sampling_of

if TYPE_CHECKING:
    from .llama.engine import Engine, Progress


class Backend(Protocol):
    """A loaded model, in this process (`local`) or another (`isolated`)."""

    @property
    def info(self) -> Info: ...
    def start(self, ask: Ask, sink: Callable[[Event | BaseException], None]) -> Callable[[], None]: ...
    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]: ...
    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, ids: Sequence[int]) -> str: ...
    def save(self, path: str, conversation: Mapping[str, Any]) -> None: ...
    def restore(self, path: str) -> dict[str, Any]: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class Model:
    """A loaded GGUF; use it in a `with` (or `async with`), or call `close()`. For any number of threads."""

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
        """`close` without holding up the event loop."""
        await asyncio.to_thread(self.close)

    @property
    def context(self) -> int:
        """Tokens a conversation can hold."""
        return self.backend.info.context

    @property
    def parallel(self) -> int:
        """Answers that are made at once; more wait."""
        return self.backend.info.parallel

    @property
    def vision(self) -> bool:
        """Whether there is a file to see images with."""
        return self.backend.info.vision

    @property
    def has_template(self) -> bool:
        """Whether the model can chat; otherwise it can only complete."""
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

        Raises InvalidInput for what cannot be asked and Busy when too many wait.
        """
        options = options or Options()
        ask = Ask(messages, options=options, overflow=overflow)
        return begun(Answer(options, on_end), lambda sink: self.backend.start(ask, sink))

    def complete(self, prompt: str | Sequence[int], options: Options | None = None) -> Answer:
        """The continuation of a text or of token ids, without the chat template."""
        options = options or Options()
        return begun(Answer(options), lambda sink: self.backend.start(Ask(prompt, True, options), sink))

    async def achat(
        self, messages: Sequence[Message], options: Options | None = None, *, overflow: Overflow = "error"
    ) -> Answer:
        """`chat` without holding up the event loop, should the model's process have to be started again."""
        return await asyncio.to_thread(self.chat, messages, options, overflow=overflow)

    async def acomplete(self, prompt: str | Sequence[int], options: Options | None = None) -> Answer:
        """`complete` without holding up the event loop."""
        return await asyncio.to_thread(self.complete, prompt, options)

    def conversation(
        self, system: str | None = None, *, overflow: Overflow = "error", options: Options | None = None
    ) -> Conversation:
        """A new conversation, with a system message if one is given."""
        first = [] if system is None else [{"role": "system", "content": system}]
        return Conversation(self, first, overflow=overflow, options=options)

    def load_conversation(self, path: str | Path, *, options: Options | None = None) -> Conversation:
        """Take up what `Conversation.save` wrote. Raises InvalidInput for any other file."""
        kept = self.backend.restore(str(Path(path).absolute()))
        return Conversation(self, kept["messages"], overflow=kept["overflow"], options=options)

    async def aload_conversation(self, path: str | Path, *, options: Options | None = None) -> Conversation:
        """`load_conversation` without holding up the event loop."""
        return await asyncio.to_thread(self.load_conversation, path, options=options)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """One vector of length 1 a text, float32 [texts, n_embd], and how many tokens they are together."""
        return self.backend.embed(texts)

    async def aembed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """`embed` without holding up the event loop."""
        return await asyncio.to_thread(self.embed, texts)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without BOS; names of control tokens stay text."""
        return self.backend.tokenize(text)

    async def atokenize(self, text: str) -> list[int]:
        """`tokenize` without holding up the event loop."""
        return await asyncio.to_thread(self.tokenize, text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens have none."""
        return self.backend.detokenize(ids)

    async def adetokenize(self, ids: Sequence[int]) -> str:
        """`detokenize` without holding up the event loop."""
        return await asyncio.to_thread(self.detokenize, ids)

    def stats(self) -> dict[str, float]:
        """Answers being made and waiting, tokens in memory, and totals since the start."""
        return self.backend.stats()

    async def astats(self) -> dict[str, float]:
        """`stats` without holding up the event loop."""
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
    steady: bool | None = None,
    max_queue: int | None = None,
    on_progress: "Progress | None" = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a GGUF for chatting.

    model: a file, a folder with one, or a Hub id with a preset (owner/name:Q4_K_M). device, gpu_layers: see `devices`.
    context: tokens a conversation can hold; None is the model's own, at most 8192. parallel: answers made at once.
    threads: None is the CPUs this process may use. seed: makes answers repeatable; None draws one for each.
    sampling: fields of `Sampling` over what the file says. loras: adapter GGUFs, each with its scale.
    mmproj: the file to see images with; None takes the one that lies beside the model and has its name.
    extra_buffers: None asks the probe (see `probe`). isolate: in a process of its own, so that this one outlives
    native code's death. steady: a greedy answer is the same whatever else is computed; None is yes for more than
    one answer at once on the CPU, where long prompts are slower for it. max_queue: more waiting requests than this
    raise Busy. on_progress: see `Progress`.
    on_download: called with bytes fetched and bytes in all, for a model on the Hub.
    Raises InvalidInput for a file that cannot be used, BorealisError when llama.cpp cannot load it.
    """
    from .find import find_model

    path = find_model(model, on_download)
    wanted = {
        "device": device, "gpu_layers": gpu_layers, "context": context, "parallel": parallel, "threads": threads,
        "seed": seed, "sampling": dict(sampling or {}), "loras": [(str(p), scale) for p, scale in loras],
        "mmproj": str(mmproj) if mmproj else None, "extra_buffers": extra_buffers, "max_queue": max_queue,
        "steady": steady,
    }  # fmt: skip
    if not isolate:
        return Model(path, load_here(path, on_progress=on_progress, **wanted))
    from .process.isolated_model import Isolated

    return Model(path, Isolated(path, wanted, on_progress))


async def aload(model: str | Path, **options: Any) -> Model:
    """`load` without holding up the event loop; `on_progress` and `on_download` are called from another thread."""
    return await asyncio.to_thread(load, model, **options)


def load_here(
    path: Path,
    *,
    device: str,
    gpu_layers: int | str,
    context: int | None,
    parallel: int,
    threads: int | None,
    seed: int | None,
    sampling: Mapping[str, float],
    loras: Sequence[tuple[str, float]],
    mmproj: str | None,
    extra_buffers: bool | None,
    max_queue: int | None,
    steady: bool | None,
    on_progress: "Progress | None" = None,
) -> Local:
    """What `load` does in this process; the arguments are its."""
    header = read_gguf(path)
    if header.value("general.type", "model") != "model" or header.value("general.architecture") == "clip":
        raise InvalidInput(f"{path}: not a language model but a {header.value('general.type', 'vision part')}")
    chosen = override(sampling_of(header), sampling)
    adapters = checked_loras(header, loras)
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads: {threads} is not 1 or more")
    first = None if seed is None else checked_seed(seed)
    safe = extra_buffers_work() if extra_buffers is None else extra_buffers
    seeing = Path(mmproj) if mmproj else mmproj_beside(path)
    placement = _place(header, seeing, device, gpu_layers, context, parallel, safe, [path for path, _ in adapters])
    with ExitStack() as undo:
        engine = engine_class()(
            path,
            context=placement.context,
            threads=threads or usable_cores(),
            extra_buffers=safe,
            parallel=parallel,
            steady=parallel > 1 and not placement.n_gpu_layers if steady is None else steady,
            model_params=model_params(placement),
            vision_device=placement.name if placement.n_gpu_layers else None,
            loras=adapters,
            on_progress=on_progress,
        )
        undo.callback(engine.close)
        template = _template(header, engine)
        local = Local(
            engine,
            template,
            chosen,
            lambda: secrets.randbelow(MAX_SEED + 1) if first is None else first,
            mmproj=seeing,
            loras=adapters,
            max_queue=max_queue,
            placement=placement.describe(),
        )
        undo.pop_all()
        return local


def _place(
    header: GGUFFile,
    mmproj: Path | None,
    device: str,
    gpu_layers: int | str,
    context: int | None,
    parallel: int,
    extra_buffers: bool,
    adapters: Sequence[Path],
) -> Placement:
    """Where the model goes, as llama.cpp sees this machine. Raises InvalidInput when it fits nowhere."""
    try:
        from .llama.devices import devices
        from .llama.repack import repacked
        from .llama.vision import read_mmproj
    except (ImportError, OSError, RuntimeError) as error:
        raise unloadable(error) from error
    return choose(
        header,
        device=device,
        gpu_layers=gpu_layers,
        context=context,
        parallel=parallel,
        devices=devices(),
        mmproj=read_mmproj(mmproj) if mmproj is not None else None,
        outputs=parallel,
        repack=repacked if extra_buffers else None,
        adapters=[read_gguf(adapter) for adapter in adapters],
    )


def _template(header: GGUFFile, engine: "Engine") -> ChatTemplate | None:
    source = header.value(TEMPLATE_KEY)
    tokens = [engine.token_text(header.value(f"tokenizer.ggml.{name}_token_id", -1)) for name in ("bos", "eos")]
    return ChatTemplate(source, *tokens) if source else None


def engine_class() -> "type[Engine]":
    """llama.cpp's libraries are loaded after the probe said that they can be."""
    try:
        from .llama.engine import Engine
    except (ImportError, OSError, RuntimeError) as error:
        raise unloadable(error) from error
    return Engine


def unloadable(error: Exception) -> BorealisError:
    """What to say when llama.cpp's libraries cannot be loaded."""
    return BorealisError(f"llama-cpp-python cannot be loaded ({error}); reinstall it")
