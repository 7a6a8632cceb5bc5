"""Strips the prefixes that versions of transformers and trainers put before tensor and module names."""

from .architectures import siglip

WRAPPERS = ("base_model", "_orig_mod", "model", "language_model", "transformer")


def plain_name(name: str) -> str:
    """Turns `language_model.model.layers.0.…` and `model.language_model.layers.0.…` into `layers.0.…`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    name = ".".join(parts)
    return siglip.plain_name(name) or name
