"""Parses GGUF file names: NAME-TYPE.gguf, and mmproj-NAME-TYPE.gguf for the vision tower of NAME."""

import re
from pathlib import Path

TYPE_SUFFIX = re.compile(r"[-.](F32|F16|BF16|I?Q\d\w*|TQ\d_0|MXFP4\w*)$", re.IGNORECASE)
SPLIT_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
MMPROJ = "mmproj-"
MMPROJ_TYPES = ("F16", "BF16", "F32", "Q8_0")
"""Types of mmproj files, in the order of preference when several lie beside a model."""


def model_stem(path: Path) -> str:
    """Returns NAME of `NAME-Q4_K_M.gguf`, also of a shard."""
    return TYPE_SUFFIX.sub("", SPLIT_SUFFIX.sub("", path.stem))


def mmproj_beside(model: Path) -> Path | None:
    """Returns the mmproj file that lies beside `model` and has its NAME, or None."""
    start = f"{MMPROJ}{model_stem(model)}".lower()
    by_stem = {p.stem.lower(): p for p in model.parent.iterdir() if p.suffix.lower() == ".gguf"}
    return next((by_stem[name] for t in MMPROJ_TYPES if (name := f"{start}-{t.lower()}") in by_stem), None)
