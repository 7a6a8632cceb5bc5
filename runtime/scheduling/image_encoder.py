"""Looking at images, in a thread of its own: answers to texts go on while it takes its time."""

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...checkpoint.gguf_naming import model_stem
from ...errors import BorealisError, InvalidInput
from ..prompting.image_decoding import ImageFile

if TYPE_CHECKING:
    from ..llama.engine import Engine
    from ..llama.vision import Vision

KEPT = 8
"""Images whose features are kept, the last ones looked at."""


class Eyes:
    """What `engine` sees with: `mmproj`, loaded when the first image is looked at. For any thread; to be closed."""

    def __init__(self, engine: "Engine", mmproj: Path | None) -> None:
        self.engine, self.mmproj = engine, mmproj
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="borealis-gguf images")
        self._vision: Vision | None = None
        self._seen: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._tokens = 0
        self._closing = threading.Lock()

    @property
    def tokens(self) -> int:
        """How many tokens an image is; the file's header says it, so nobody waits. Raises InvalidInput without one."""
        if not self._tokens:
            from ..llama.vision import image_tokens

            self._tokens = image_tokens(self._file(), self.engine.n_embd)
        return self._tokens

    def look(
        self,
        images: Sequence[ImageFile],
        wanted: Callable[[], bool],
        give: Callable[[list[np.ndarray]], None],
        fail: Callable[[BorealisError], None],
    ) -> None:
        """Have `give` called with the features of all `images`, float32 [tokens, n_embd] each, or `fail` with why not.

        No further image is looked at, and neither is called, once `wanted` says no. After `close` nothing happens.
        """

        def work() -> None:
            try:
                found = [self.features(image) for image in images if wanted()]
                if len(found) == len(images):
                    give(found)
            except BaseException as error:
                known = isinstance(error, BorealisError)
                fail(error if known else BorealisError(f"looking at an image failed: {error!r}"))

        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._thread.submit(work)

    def features(self, image: ImageFile) -> np.ndarray:
        """What the model reads for `image`, float32 [tokens, n_embd]. For one thread at a time."""
        digest = hashlib.sha256(image.data).digest()
        if digest not in self._seen:
            self._seen[digest] = self._look_at(image)
            while len(self._seen) > KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(digest)
        return self._seen[digest]

    def _look_at(self, image: ImageFile) -> np.ndarray:
        if self._vision is None:
            self._vision = self.engine.see(self._file())
        found = self._vision.features(image)
        if len(found) != self.tokens:
            raise BorealisError(f"{self.mmproj}: llama.cpp makes {len(found)} tokens of an image, not {self.tokens}")
        return found

    def _file(self) -> Path:
        if self.mmproj is None:
            wanted = f"mmproj-{model_stem(self.engine.path)}-F16.gguf"
            raise InvalidInput(f"{self.engine.path}: no {wanted} beside it to see images with; give one with --mmproj")
        return self.mmproj

    def close(self) -> None:
        """Forget images that wait, wait for the one being looked at, and free the memory; a second call is nothing."""
        self._thread.shutdown(cancel_futures=True)
        with self._closing:
            if self._vision is not None:
                self._vision.close()
            self._vision = None
