"""Finds the GGUF that a model name means: a file, the one in a folder, or one on the Hub."""

import re
from pathlib import Path

from ..checkpoint.file_access import quote, shown
from ..checkpoint.gguf_naming import MMPROJ, MMPROJ_TYPES, model_stem
from ..checkpoint.hub.download import SCHEMES, Progress, download_files, parse_id
from ..errors import InvalidInput

DEFAULT_PRESET = "Q4_K_M"
SPLIT_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")


def find_model(model: str | Path, on_download: Progress | None = None) -> Path:
    """The GGUF file that `model` names, fetched from the Hub if it must be.

    model: a file; a folder with one model in it; owner/name or owner/name:PRESET of the Hub, Q4_K_M if none is
    named, with @revision behind the name. Its mmproj is fetched too. A path that exists comes first.
    Raises InvalidInput when there is no such model, or more than one to choose from.
    """
    text, path = str(model), Path(model)
    if not text.startswith(SCHEMES) and (isinstance(model, Path) or path.exists() or text.lower().endswith(".gguf")):
        return _in_folder(path) if path.is_dir() else path
    name, _, preset = text.partition(":") if "://" not in text else _split(text)
    repo_id, revision = parse_id(name)
    if repo_id is None:
        raise InvalidInput(
            f"{shown(text)}: no such file or folder, and not a Hub id such as NbAiLab/borealis-4b-gguf:{DEFAULT_PRESET}"
        )
    files = download_files(repo_id, revision, lambda names: _files_to_fetch(repo_id, names, preset), on_download)
    return files[0]


def _split(text: str) -> tuple[str, str, str]:
    scheme, _, rest = text.partition("://")
    name, _, preset = rest.partition(":")
    return f"{scheme}://{name}", ":", preset


def _in_folder(folder: Path) -> Path:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    models = _models(names)
    if len(models) != 1:
        what = ", ".join(sorted(models)[:20]) or "no GGUF of a model"
        raise InvalidInput(f"{folder}: holds {what}; name one model file")
    return folder / models[0]


def _models(names: list[str]) -> list[str]:
    """The names of models; of a split model its first part."""
    ggufs = [name for name in names if name.lower().endswith(".gguf") and not name.lower().startswith(MMPROJ)]
    return [name for name in ggufs if (part := SPLIT_PART.search(name)) is None or int(part[1]) == 1]


def _files_to_fetch(repo_id: str, names: list[str], preset: str) -> list[str]:
    """The model's file, its other parts, and its mmproj."""
    models = _models(names)
    named = preset or (DEFAULT_PRESET if len(models) != 1 else "")
    found = [
        name
        for name in models
        if re.search(rf"[-.]{re.escape(named)}(-\d{{5}}-of-\d{{5}})?\.gguf$", name, re.I) or not named
    ]
    if len(found) != 1:
        there = ", ".join(models[:20]) or "no GGUF; is it a checkpoint? borealis-gguf quantize makes one"
        raise InvalidInput(
            f"{repo_id}: {'several files' if found else 'no file'} for {quote(named)}; there are {there}"
        )
    stem = SPLIT_PART.sub("", found[0])
    split = [name for name in names if SPLIT_PART.search(name)]
    parts = [name for name in split if SPLIT_PART.sub("", name) == stem and name != found[0]]
    mmproj_names = [f"{MMPROJ}{model_stem(Path(found[0]))}-{type}.gguf".lower() for type in MMPROJ_TYPES]
    mmproj = [name for each in mmproj_names for name in names if name.lower() == each][:1]
    return [*found, *parts, *mmproj]
