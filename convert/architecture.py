"""The text model that an architecture's module returns for a checkpoint."""

from dataclasses import dataclass

from ..checkpoint.types import KV
from ..pipeline.plan import Tensor


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text model's GGUF tensors and metadata keys.

    `keys` are the architecture's metadata keys, in the order llama.cpp's converter writes them; `general.file_type`
    among them is a placeholder that `describe` replaces.
    """

    architecture: str
    tensors: tuple[Tensor, ...]
    keys: tuple[KV, ...]
    tokenizer: tuple[KV, ...]
