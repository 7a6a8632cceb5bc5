"""What each tensor of a checkpoint is called and means in GGUF: one small file an architecture."""

from .describe import ARCHITECTURES, describe
from .outtype import OUTTYPES, file_type, outtypes

__all__ = ["ARCHITECTURES", "OUTTYPES", "describe", "file_type", "outtypes"]
