"""Where llama-cpp-python keeps llama.cpp's libraries, found without importing it (which would load them all)."""

import os
from importlib.util import find_spec
from pathlib import Path

from ...errors import BorealisError

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")


def library_folder() -> Path:
    """The folder of llama.cpp's libraries."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise BorealisError("llama-cpp-python is not installed; install it with: pip install llama-cpp-python")
    return Path(spec.origin).parent / "lib"


def library_path() -> Path:
    """The file of `libggml-base`."""
    folder = library_folder()
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        raise BorealisError(f"{folder}: no ggml-base library; reinstall llama-cpp-python")
    return path
