"""A model one can talk to, in this process. For a crash-proof twin see `run`."""

import codecs
import os
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..checkpoint.file_names import mmproj_beside, model_stem
from ..checkpoint.gguf import read_gguf
from ..errors import BorealisError, InvalidInput
from .image import read_image
from .loras import checked_loras
from .probe import extra_buffers_work
from .prompt import encode_chat, image_places, parts, with_bos
from .sampling import Sampling, override, sampling_of
from .template import ChatTemplate, Message

if TYPE_CHECKING:
    from .engine import Engine, Placed, Progress
    from .vision import Vision

TEMPLATE_KEY = "tokenizer.chat_template"
MAX_SEED = 2**32 - 2  # 2**32 - 1 asks llama.cpp for a random one


class Model:
    """A loaded GGUF; use it in a `with`, or call `close()`. Not for two threads at once."""

    def __init__(
        self,
        path: Path,
        engine: "Engine",
        template: ChatTemplate | None,
        sampling: Sampling,
        seed: int,
        mmproj: Path | None = None,
    ) -> None:
        self.path = path
        self.engine = engine
        self.template = template
        self.sampling = sampling
        self.seed = seed
        self.mmproj = mmproj
        self._vision: Vision | None = None
        self._turn = 0

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._turn += 1
        if self._vision is not None:
            self._vision.close()
        self.engine.close()

    def encode(self, prompt: str | Sequence[Message], raw: bool = False) -> list[int]:
        """The token ids the model would read: a conversation, one user's message, or with `raw` a text to continue.

        An image of the conversation is not among them; it is read where `<end_of_image>` follows `<start_of_image>`.
        Raises InvalidInput when the model has no chat template or its template refuses the conversation.
        """
        if raw:
            if not isinstance(prompt, str):
                raise InvalidInput("raw takes a text, not messages")
            return with_bos(self.engine, self.engine.tokenize(prompt, special=False))
        if self.template is None:
            raise InvalidInput(f"{self.path}: no {TEMPLATE_KEY}: not a chat model; use raw to continue a text with it")
        return encode_chat(self.engine, self.template, _messages(prompt))

    def look(self, prompt: str | Sequence[Message], ids: Sequence[int]) -> list["Placed"]:
        """The images of the conversation and their places in its `ids`.

        An image is a part of a message, {"type": "image", "path": "…"}: a PNG or JPEG file.
        """
        files = [part.get("path") for part in parts(_messages(prompt)) if part.get("type") == "image"]
        if not all(isinstance(file, str) for file in files):
            raise InvalidInput('an image without a file; it must be {"type": "image", "path": "…"}')
        images = [read_image(Path(file)) for file in files if file]
        if not images:
            return []
        places = image_places(self.engine, ids, len(images))
        return list(zip(places, map(self._eyes().features, images), strict=True))

    def _eyes(self) -> "Vision":
        if self._vision is None:
            mmproj = self.mmproj or mmproj_beside(self.path)
            if mmproj is None:
                wanted = f"mmproj-{model_stem(self.path)}-F16.gguf"
                raise InvalidInput(f"{self.path}: no {wanted} beside it to see images with; give one with --mmproj")
            self._vision = self.engine.see(mmproj)
        return self._vision

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> Generator[str, None, None]:
        """The answer in pieces of whole characters, as the model makes them. `seed` None: the one given to `load`.

        A new call ends an earlier one, whose iterator then raises BorealisError.
        """
        if max_tokens is not None and max_tokens < 0:
            raise InvalidInput(f"max_tokens: {max_tokens} is not 0 or more")
        ids = self.encode(prompt, raw)
        images = [] if raw else self.look(prompt, ids)
        self._turn += 1
        made = self.engine.generate(ids, self.sampling, self.seed if seed is None else checked_seed(seed), images)
        return self._decode(islice(made, max_tokens), self._turn)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> str:
        """The whole answer; the arguments are those of `stream`."""
        return "".join(self.stream(prompt, raw=raw, max_tokens=max_tokens, seed=seed))

    def _decode(self, ids: Iterator[int], turn: int) -> Generator[str, None, None]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            if self._turn != turn:
                raise BorealisError(f"{self.path}: another answer was begun, or the model closed, while this one ran")
            id = next(ids, None)
            text = decoder.decode(b"" if id is None else self.engine.piece(id), final=id is None)
            if text:
                yield text
            if id is None:
                return


def load(
    model: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    sampling: Mapping[str, float] | None = None,
    gpu_layers: int = -1,
    loras: Sequence[tuple[str | Path, float]] = (),
    extra_buffers: bool | None = None,
    mmproj: str | Path | None = None,
    on_progress: "Progress | None" = None,
) -> Model:
    """Load a GGUF for chatting.

    context: tokens; None is the model's own, at most 8192. threads: None is the CPUs this process may use.
    seed: makes answers repeatable; None draws one. sampling: fields of `Sampling` over what the file says.
    gpu_layers: -1 is all, if llama.cpp was built for a GPU. mmproj: the file to see images with; None takes the one
    that lies beside the model and has its name. extra_buffers: None asks the probe (see `probe`).
    loras: adapter GGUFs, each with its scale.
    Raises InvalidInput for a file that cannot be used, BorealisError when llama.cpp cannot load it.
    """
    path = Path(model)
    header = read_gguf(path)
    if header.value("general.type", "model") != "model" or header.value("general.architecture") == "clip":
        raise InvalidInput(f"{path}: not a language model but a {header.value('general.type', 'vision part')}")
    chosen = override(sampling_of(header), sampling or {})
    adapters = checked_loras(header, loras)
    seed = secrets.randbelow(MAX_SEED + 1) if seed is None else checked_seed(seed)
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads: {threads} is not 1 or more")
    safe = extra_buffers_work() if extra_buffers is None else extra_buffers
    engine = _engine_class()(
        path,
        context=context,
        threads=threads or _cpus(),
        extra_buffers=safe,
        gpu_layers=gpu_layers,
        loras=adapters,
        on_progress=on_progress,
    )
    source = header.value(TEMPLATE_KEY)
    tokens = [engine.token_text(header.value(f"tokenizer.ggml.{name}_token_id", -1)) for name in ("bos", "eos")]
    return Model(
        path, engine, ChatTemplate(source, *tokens) if source else None, chosen, seed, Path(mmproj) if mmproj else None
    )


def _messages(prompt: str | Sequence[Message]) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def checked_seed(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"seed: {seed} is not within 0 and {MAX_SEED}")
    return seed


def _engine_class() -> "type[Engine]":
    """llama.cpp's libraries are loaded after the probe said that they can be."""
    try:
        from .engine import Engine
    except (ImportError, OSError, RuntimeError) as error:
        raise BorealisError(f"llama-cpp-python cannot be loaded ({error}); reinstall it") from error
    return Engine


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
