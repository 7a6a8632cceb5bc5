"""The kernels' sources and the flags setup.py compiles them with."""

import hashlib
import runpy
from typing import Any
from unittest.mock import patch

from .paths import ROOT

KERNELS = ROOT / "quantize" / "kernels"
SOURCES = sorted([*KERNELS.glob("*.c"), *KERNELS.glob("*.h")])


def settings() -> dict[str, Any]:
    """The names of setup.py, its call left out: STRICT, X86_ISAS and ONCE among them."""
    with patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def digest() -> str:
    """SHA-256 of what decides the kernels' bytes: the flags, and the sources, with whatever ends of lines."""
    build = settings()
    whole = hashlib.sha256(repr((build["STRICT"], build["X86_ISAS"])).encode())
    for path in SOURCES:
        whole.update(f"\n{path.name}\n{path.read_text(encoding='utf-8')}".encode())
    return whole.hexdigest()
