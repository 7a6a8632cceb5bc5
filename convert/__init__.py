"""Maps a checkpoint's tensors, configuration and tokenizer to GGUF, with one small module per architecture."""

from .describe import ARCHITECTURES, describe, describe_vision, has_vision
from .outtype import OUTTYPES, file_type, outtypes

__all__ = ["ARCHITECTURES", "OUTTYPES", "describe", "describe_vision", "file_type", "has_vision", "outtypes"]
