"""Encodes images in a thread of its own, so that answers to texts go on meanwhile."""

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
    from ..llama.vision import VisionTower

CACHED_IMAGES = 8
"""Images whose features are kept, the last ones used."""


class ImageEncoder:
    """The vision tower of `engine`, from `mmproj`, loaded for the first image. For any thread; must be closed."""

    def __init__(self, engine: "Engine", mmproj: Path | None) -> None:
        self.engine, self.mmproj = engine, mmproj
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="borealis-gguf images")
        self._vision: VisionTower | None = None
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._tokens_per_image = 0
        self._closing = threading.Lock()

    @property
    def tokens_per_image(self) -> int:
        """Tokens of an image, read from the mmproj's header without waiting. Raises InvalidInput without an mmproj."""
        if not self._tokens_per_image:
            from ..llama.vision import image_tokens

            self._tokens_per_image = image_tokens(self._file(), self.engine.n_embd)
        return self._tokens_per_image

    def submit(
        self,
        images: Sequence[ImageFile],
        still_wanted: Callable[[], bool],
        on_features: Callable[[list[np.ndarray]], None],
        on_error: Callable[[BorealisError], None],
    ) -> None:
        """Queue `images`. Calls `on_features` with all their features, float32 [tokens, n_embd] each, or `on_error`.

        Once `still_wanted` returns False no further image is encoded, and neither is called; nor after `close`.
        """

        def work() -> None:
            try:
                found = [self.features(image) for image in images if still_wanted()]
                if len(found) == len(images):
                    on_features(found)
            except BaseException as error:
                known = isinstance(error, BorealisError)
                on_error(error if known else BorealisError(f"looking at an image failed: {error!r}"))

        try:
            self._thread.submit(work)
        except RuntimeError as error:  # closed meanwhile, or the system has no more threads
            on_error(BorealisError(f"looking at an image failed: {error}"))

    def features(self, image: ImageFile) -> np.ndarray:
        """The embeddings of `image`, float32 [tokens, n_embd]. For one thread at a time."""
        digest = hashlib.sha256(image.data).digest()
        if digest not in self._cache:
            self._cache[digest] = self._encode(image)
            while len(self._cache) > CACHED_IMAGES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(digest)
        return self._cache[digest]

    def _encode(self, image: ImageFile) -> np.ndarray:
        if self._vision is None:
            self._vision = self.engine.load_vision(self._file())
        found = self._vision.features(image)
        if len(found) != self.tokens_per_image:
            raise BorealisError(
                f"{self.mmproj}: llama.cpp makes {len(found)} tokens of an image, not {self.tokens_per_image}"
            )
        return found

    def _file(self) -> Path:
        if self.mmproj is None:
            usual = f"mmproj-{model_stem(self.engine.path)}-F16.gguf"
            raise InvalidInput(f"{self.engine.path}: no {usual} beside it to see images with; give one with --mmproj")
        return self.mmproj

    def close(self) -> None:
        """Drop the queue, wait for the image being encoded, and free the memory; a second call does nothing."""
        self._thread.shutdown(cancel_futures=True)
        with self._closing:
            if self._vision is not None:
                self._vision.close()
            self._vision = None
