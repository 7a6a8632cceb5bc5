"""Where notes about this machine are kept."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """BOREALIS_GGUF_CACHE, else the platform's folder for things that may be deleted at any time."""
    chosen = os.environ.get("BOREALIS_GGUF_CACHE")
    return Path(chosen) if chosen else _platform_cache() / "borealis-gguf"


def _platform_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
