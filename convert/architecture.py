"""What the file of an architecture hands on."""

from dataclasses import dataclass

from ..checkpoint.types import KV
from ..pipeline.plan import Tensor


@dataclass(frozen=True, slots=True)
class Text:
    """A text model as one architecture understands it.

    `keys` are the architecture's own, in the order llama.cpp's converter writes them; its `general.file_type` stands
    among them with a placeholder, since the type of the file is not the architecture's affair.
    """

    architecture: str
    tensors: tuple[Tensor, ...]
    keys: tuple[KV, ...]
    tokenizer: tuple[KV, ...]
