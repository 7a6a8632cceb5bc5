"""Which GGUF is meant: a file, a folder's, or one on the Hub."""

from pathlib import Path

from ..errors import InvalidInput


def find_model(model: str | Path) -> Path:
    """The GGUF file that `model` names. Raises InvalidInput when there is none, or more than one to choose from."""
    path = Path(model)
    if not path.is_dir():
        return path
    found = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj-"))
    if len(found) != 1:
        what = ", ".join(file.name for file in found) or "no GGUF"
        raise InvalidInput(f"{path}: holds {what}; name one model file")
    return found[0]
