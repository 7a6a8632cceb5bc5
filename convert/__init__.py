"""What each tensor of a checkpoint is called and means in GGUF: one small file an architecture."""

from .describe import ARCHITECTURES, can_see, describe, describe_vision
from .outtype import OUTTYPES, file_type, outtypes

__all__ = ["ARCHITECTURES", "OUTTYPES", "can_see", "describe", "describe_vision", "file_type", "outtypes"]
