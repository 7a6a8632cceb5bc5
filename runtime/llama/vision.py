"""The vision tower: an mmproj file, loaded by llama.cpp's mtmd.

mtmd would pad an image that is not square with black, where the checkpoint's own processor stretches it. So mtmd only
normalizes; images are decoded, turned upright and stretched before.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp.mtmd_cpp
import numpy as np

from ...checkpoint.gguf import GGUFFile, read_gguf
from ...checkpoint.gguf_validation import check_model
from ...errors import BorealisError, InvalidInput
from ..prompting.image_decoding import ImageFile, image_pixels
from .devices import device_handle
from .vocabulary import clear_errors, collect_errors, encoded_path, error_clause

mtmd: Any = llama_cpp.mtmd_cpp  # its declarations do not fit what its functions take
PROJECTOR = "gemma3"
DEFAULT_POOL = 4  # where the file has no scale_factor, as in all published sizes
IMAGE_CHUNK = 1  # MTMD_INPUT_CHUNK_TYPE_IMAGE


class VisionTower:
    """A loaded mmproj, bound to a text model. For one thread at a time; `close()` frees the memory."""

    def __init__(
        self, path: Path, model: Any, *, n_embd: int, threads: int, gpu: bool, device: str | None = None
    ) -> None:
        """`model` is the text model's `llama_model`, `device` ggml's name. Raises BorealisError, InvalidInput."""
        header = _matching_mmproj(path, n_embd)
        self.n_embd = n_embd
        self.image_size: int = header.value("clip.vision.image_size", 0)
        self._context: Any = None
        mtmd.mtmd_helper_log_set(collect_errors, ctypes.c_void_p(0))
        clear_errors()
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads = gpu, threads
        if gpu and device is not None:
            params.device = device_handle(device)
        params.print_timings = params.warmup = False
        self._context = mtmd.mtmd_init_from_file(encoded_path(path), model, params)
        if self._context is None:
            raise BorealisError(f"{path}: llama.cpp cannot load it{error_clause()}")

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._context is not None:
            mtmd.mtmd_free(self._context)
        self._context = None

    def features(self, image: ImageFile) -> np.ndarray:
        """The embeddings of `image`: float32 [tokens, n_embd]."""
        pixels = image_pixels(image, self.image_size, self.image_size)
        return self._with_chunk(image.path, pixels, lambda chunk: self._encode(image.path, chunk))

    def _with_chunk(self, path: Path, pixels: np.ndarray, use: Callable[[Any], Any]) -> Any:
        """What `use` returns for mtmd's chunk of `pixels`, which have the model's size."""
        pixels = np.ascontiguousarray(pixels)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(self.image_size, self.image_size, data)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            return use(self._image_chunk(path, bitmap, chunks))
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _image_chunk(self, path: Path, bitmap: Any, chunks: Any) -> Any:
        """The image chunk that mtmd makes of `bitmap`; the text chunks around it are not needed."""
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        status = mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1)
        all_chunks = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        found = [chunk for chunk in all_chunks if mtmd.mtmd_input_chunk_get_type(chunk) == IMAGE_CHUNK]
        if status or len(found) != 1:
            raise BorealisError(f"{path}: llama.cpp cannot prepare this image (status {status}{error_clause()})")
        return found[0]

    def _encode(self, path: Path, chunk: Any) -> np.ndarray:
        clear_errors()
        status = mtmd.mtmd_encode_chunk(self._context, chunk)
        if status:
            raise BorealisError(
                f"{path}: llama.cpp stopped while looking at this image (status {status}{error_clause()})"
            )
        shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), self.n_embd
        return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy()


def read_mmproj(path: Path) -> GGUFFile:
    """The header of a Gemma 3 mmproj. Raises InvalidInput for any other file."""
    header = read_gguf(path)
    if header.value("general.architecture") != "clip":
        raise InvalidInput(f"{path}: not an mmproj but a {header.value('general.architecture', 'file without a name')}")
    check_model(header)
    if (kind := header.value("clip.projector_type")) != PROJECTOR:
        raise InvalidInput(f"{path}: its projector is {kind!r}; only {PROJECTOR} is known here")
    size, patch = header.value("clip.vision.image_size", 0), header.value("clip.vision.patch_size", 0)
    if not (isinstance(size, int) and isinstance(patch, int) and 0 < patch <= size <= 4096):
        raise InvalidInput(f"{path}: images of {size} in patches of {patch}; make the file again from its checkpoint")
    return header


def _matching_mmproj(path: Path, n_embd: int) -> GGUFFile:
    header = read_mmproj(path)
    if (dim := header.value("clip.vision.projection_dim")) != n_embd:
        raise InvalidInput(
            f"{path}: belongs to a model with embeddings of {dim}, not {n_embd}; give this model's own mmproj"
        )
    return header


def image_tokens(path: Path, n_embd: int) -> int:
    """Tokens of an image for a model with `n_embd`: every image is stretched to one square of patches, which are
    pooled (clip_n_output_tokens of llama.cpp). Raises InvalidInput for another model's mmproj."""
    header = _matching_mmproj(path, n_embd)
    side = header.value("clip.vision.image_size", 0) // header.value("clip.vision.patch_size", 1)
    pool = header.value("clip.vision.projector.scale_factor", DEFAULT_POOL)
    if not (isinstance(pool, int) and 0 < pool <= side and side % pool == 0):
        raise InvalidInput(f"{path}: {side} x {side} patches pooled by {pool}; make the file again from its checkpoint")
    return (side // pool) ** 2
