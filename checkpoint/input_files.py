"""Lists the files that a model, an adapter or a checkpoint is read from, and refuses to write over one of them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InvalidInput
from .file_access import stat_if_there
from .folder import Checkpoint
from .gguf import GGUFFile
from .hub.download import WANTED
from .lora import Adapter

FOLDER_FILES = (*(pattern for pattern in WANTED if "/" not in pattern), "*.safetensors")
TEMPLATES = "additional_chat_templates/*.jinja"


def input_files(source: Checkpoint | GGUFFile | Adapter) -> tuple[Path, ...]:
    """Every file that `source` is read from; of a folder also those that only some commands read."""
    if isinstance(source, GGUFFile):
        return (source.path, *{tensor.path for tensor in source.tensors.values()})
    names = [path for path in source.path.iterdir() if any(fnmatchcase(path.name, name) for name in FOLDER_FILES)]
    return (*names, *source.path.glob(TEMPLATES))


def refuse_input_as_output(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises InvalidInput for an output that is one of `inputs`, under whatever name: a link, another spelling."""
    read = {identity: path for path in inputs if (identity := _identity(path))}
    for output in outputs:
        identity = _identity(output)
        path = read.get(identity) if identity else None
        if path is not None:
            named = "" if path == output else f" {path}"
            raise InvalidInput(f"{output}: the output would overwrite its own input{named}; choose another with -o")


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None without such a file."""
    found = stat_if_there(path)
    return found and (found.st_dev, found.st_ino)
