"""A model in this process: turns requests into jobs of the scheduler."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BorealisError, InvalidInput
from ..events import EventSink, GenerationRequest, ModelInfo, Options
from ..prompting.chat_template import TEMPLATE_KEY, Message
from ..prompting.context_overflow import encode_fitting, too_long
from ..prompting.image_decoding import ImageFile, read_image, read_image_data
from ..prompting.json_schema import grammar_of
from ..prompting.prompt import ChatEncoder, EncodedChat, check_messages, image_parts, image_places, with_bos
from ..prompting.sampling_settings import Sampling, override_sampling
from ..prompting.template_renderer import TemplateRenderer
from ..prompting.tool_calls import add_tool_instructions, offered_tools, tool_grammar
from ..scheduling.image_encoder import ImageEncoder
from ..state_file import model_identity, read_state, write_state

if TYPE_CHECKING:
    from ..llama.embedder import Embedder
    from ..llama.engine import Engine
    from ..scheduling.job import Job

MAX_STOPS = 16
MAX_TOP = 64


class InProcessModel:
    """A backend of `Model`. Every method may be called from any thread; `close()` frees the memory."""

    def __init__(
        self,
        engine: "Engine",
        renderer: TemplateRenderer | None,
        sampling: Sampling,
        seed: Callable[[], int],
        *,
        mmproj: Path | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        max_queue: int | None = None,
        placement: str = "",
    ) -> None:
        from ..scheduling.scheduler import Scheduler

        self.engine, self.renderer, self.sampling, self.seed, self.loras = engine, renderer, sampling, seed, loras
        self._chat_encoder = None if renderer is None else ChatEncoder(engine, renderer)
        self.info = ModelInfo(engine.n_context, engine.parallel, mmproj is not None, renderer is not None, placement)
        self.image_encoder = ImageEncoder(engine, mmproj)
        self._scheduler = Scheduler(engine, max_queue)
        self._embedder: Embedder | None = None
        self._lock = threading.Condition()
        self._callers = 0
        self._closed = False

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps `close` from freeing the model while a method uses it. Raises BorealisError when it is closed."""
        with self._lock:
            if self._closed:
                raise BorealisError("the model is closed")
            self._callers += 1
        try:
            yield
        finally:
            with self._lock:
                self._callers -= 1
                self._lock.notify_all()

    def close(self) -> None:
        """End all answers and free the memory; a second call does nothing."""
        with self._lock:
            self._closed = True
        self._scheduler.close()
        self.image_encoder.close()
        with self._lock:
            self._lock.wait_for(lambda: not self._callers)
            if self._embedder is not None:
                self._embedder.close()
            self._embedder = None
            if self.renderer is not None:
                self.renderer.close()
            self.engine.close()

    def start(self, request: GenerationRequest, sink: EventSink) -> Callable[[], None]:
        """Start an answer whose events go to `sink`; returns a function that cancels it. Raises InvalidInput, Busy."""
        with self._in_use():
            return self._start(request, sink)

    def _start(self, request: GenerationRequest, sink: EventSink) -> Callable[[], None]:
        from ..llama.sampler import Sampler
        from ..scheduling.job import Job

        options = _checked(request.options)
        sampling = override_sampling(self.sampling, options.sampling)
        grammar = grammar_of(options.schema) if options.schema is not None else tool_grammar(options)
        ids, images = self.encode(request)
        places = image_places(self.engine, ids, len(images)) if images else []
        seed = self.seed() if options.seed is None else checked_seed(options.seed)
        sampler = Sampler(self.engine, sampling, seed, grammar)
        job = Job(ids, {}, sampler, sink, options.max_tokens, options.stop, options.logprobs, bool(images))
        try:
            self._scheduler.submit(job)
        except BaseException:
            sampler.close()
            raise
        if images:
            self._encode_images(job, places, images)
        return lambda: self._scheduler.cancel(job)

    def _encode_images(self, job: "Job", places: Sequence[int], images: Sequence[ImageFile]) -> None:
        """Queue the images of a waiting job, which can start when they are encoded."""
        scheduler, ids = self._scheduler, job.tokens
        self.image_encoder.submit(
            images,
            lambda: scheduler.is_waiting(job),
            lambda features: scheduler.attach_images(job, *with_images(ids, places, features)),
            lambda error: scheduler.drop(job, error),
        )

    def encode(self, request: GenerationRequest) -> tuple[list[int], list[ImageFile]]:
        """The token ids of a request, with overflowing messages left out, and its images. Raises InvalidInput."""
        if request.raw:
            return self._fit(self._raw_ids(request.prompt)), []
        if isinstance(request.prompt, str) or any(isinstance(message, int) for message in request.prompt):
            raise InvalidInput("a conversation is a list of messages; use raw to continue a text or tokens")
        if self._chat_encoder is None:
            raise InvalidInput(
                f"{self.engine.path}: no {TEMPLATE_KEY}: not a chat model; use raw (--raw) to continue a text"
            )
        encoder, options = self._chat_encoder, request.options
        messages = add_tool_instructions(request.prompt, options)  # type: ignore[arg-type]
        check_messages(messages)
        images = {id(part): _image(part) for part in image_parts(messages)}
        image_tokens = self.image_encoder.tokens_per_image if images else 0

        def encode(some: Sequence[Message]) -> EncodedChat:
            return encoder.encode(some, image_tokens)

        context = self.engine.n_context
        reserved = min(context // 4 if options.max_tokens is None else options.max_tokens, context // 2)
        encoded = encode_fitting(messages, request.overflow, context, reserved, encode)
        return encoded.ids, [images[id(part)] for part in image_parts(encoded.messages)]

    def _raw_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return with_bos(self.engine, self.engine.tokenize(prompt, special=False))
        ids = list(prompt)
        if not ids or not all(isinstance(id, int) and 0 <= id < self.engine.n_vocab for id in ids):
            raise InvalidInput(f"the tokens are not a list of numbers from 0 to {self.engine.n_vocab - 1}")
        return ids

    def _fit(self, ids: list[int]) -> list[int]:
        if not 0 < len(ids) < self.engine.n_context:
            raise too_long(len(ids), self.engine.n_context)
        return ids

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without BOS; names of control tokens stay text."""
        with self._in_use():
            return self.engine.tokenize(text, special=False)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens have none."""
        with self._in_use():
            return b"".join(map(self.engine.piece, self._raw_ids(ids))).decode("utf-8", "replace")

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """One vector of length 1 per text, float32 [texts, n_embd], and how many tokens the texts are together."""
        with self._in_use():
            prompts = [self._raw_ids(text) for text in texts]
            rows = [self._scheduler.call(lambda ids=ids: self._embed(ids)) for ids in prompts]
        return np.stack(rows) if rows else np.empty((0, self.engine.n_embd), np.float32), sum(map(len, prompts))

    def _embed(self, ids: Sequence[int]) -> np.ndarray:
        from ..llama.embedder import Embedder

        if self._embedder is None:
            self._embedder = Embedder(self.engine)
        return self._embedder.embed(ids)

    def save(self, path: str, conversation: Mapping[str, Any]) -> None:
        """Write a conversation and its KV cache. `conversation` is JSON with "messages" and "overflow"."""
        with self._in_use():
            try:
                request = GenerationRequest(list(conversation["messages"]), overflow=conversation["overflow"])
                ids, images = self.encode(request)
            except InvalidInput:  # no message yet, too long, or an image is gone: the messages are saved all the same
                ids, images = [], []
            tokens, state = self._scheduler.call(lambda: self._scheduler.slots.state_of([] if images else ids))
        write_state(Path(path), self._identity(), dict(conversation), tokens, state)

    def restore(self, path: str) -> dict[str, Any]:
        """Restore the KV cache that `save` wrote; returns the conversation. Raises InvalidInput for any other file."""
        conversation, tokens, state = read_state(Path(path), self._identity(), self.engine.path.name)
        with self._in_use():
            if tokens and len(tokens) <= self.engine.n_context:
                self._scheduler.call(lambda: self._scheduler.slots.restore(tokens, state))
        return conversation

    def _identity(self) -> dict[str, Any]:
        return model_identity(self.engine.path, self.loras)

    def stats(self) -> dict[str, float]:
        """Answers running and waiting, tokens in the KV cache, totals since the start, and whether the model is up."""
        return {**self._scheduler.stats(), "up": float(self._scheduler.unusable is None), "restarts_total": 0}


def with_images(
    ids: Sequence[int], places: Sequence[int], features: Sequence[np.ndarray]
) -> tuple[list[int], dict[int, np.ndarray]]:
    """A prompt's tokens with its images inserted at `places` (ascending), and the images by their positions then.

    An image, float32 [tokens, n_embd], becomes as many equal negative numbers, made from its digest.
    """
    tokens, images, shift = list(ids), {}, 0
    for place, image in zip(places, features, strict=True):
        name = -1 - int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:7], "little")
        tokens[place + shift : place + shift] = [name] * len(image)
        images[place + shift] = image
        shift += len(image)
    return tokens, images


MAX_SEED = 2**32 - 2  # llama.cpp takes 2**32 - 1 for "random"


def checked_seed(seed: int) -> int:
    """`seed`, if llama.cpp can take it. Raises InvalidInput."""
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"seed: {seed} is not within 0 and {MAX_SEED}")
    return seed


def _checked(options: Options) -> Options:
    if options.max_tokens is not None and options.max_tokens < 0:
        raise InvalidInput(f"max_tokens: {options.max_tokens} is not 0 or more")
    if options.logprobs is not None and not 0 <= options.logprobs <= MAX_TOP:
        raise InvalidInput(f"logprobs: {options.logprobs} is not within 0 and {MAX_TOP}")
    if options.schema is not None and offered_tools(options):
        raise InvalidInput("tools and a schema for the answer cannot be asked for together; leave one of them out")
    if len(options.stop) > MAX_STOPS or not all(isinstance(stop, str) and stop for stop in options.stop):
        raise InvalidInput(f"stop: at most {MAX_STOPS} texts, none of them empty")
    return options


def _image(part: Message) -> ImageFile:
    data, path = part.get("data"), part.get("path")
    if isinstance(data, bytes):
        return read_image_data(data)
    if not isinstance(path, str) or not path:
        raise InvalidInput('an image without a file; it must be {"type": "image", "path": "…"} or have its "data"')
    return read_image(Path(path))
