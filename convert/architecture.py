"""What the module of an architecture makes of a checkpoint."""

from dataclasses import dataclass

from ..checkpoint.types import KV
from ..pipeline.plan import Tensor


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text model as one architecture understands it.

    `keys` are the architecture's own, in the order llama.cpp's converter writes them; its `general.file_type` is a
    placeholder, which `describe` fills in.
    """

    architecture: str
    tensors: tuple[Tensor, ...]
    keys: tuple[KV, ...]
    tokenizer: tuple[KV, ...]
