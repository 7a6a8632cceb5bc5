"""Parses a model's name, such as `NbAiLab/borealis-4b-instruct`, into organization, basename, size and finetune."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from gguf.metadata import Metadata

HASH = re.compile(r"[0-9a-f]{40}")
MAX_NAME = 512


@dataclass(frozen=True, slots=True)
class NameParts:
    """The parts of a name; a missing part is None."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None

    def filled(self, other: "NameParts") -> "NameParts":
        """Returns these parts, with missing ones taken from `other`."""
        return NameParts(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})


def parse_model_name(model_id: str, weights: int) -> NameParts:
    """Splits `model_id` as llama.cpp does; the number of `weights` tells a size ("4b") from a context length ("8k")."""
    if not model_id.strip("-") or len(model_id) > MAX_NAME:
        return NameParts()
    name, organization, basename, finetune, version, size_label = Metadata.get_model_id_components(model_id, weights)
    return NameParts(_title(name), _title(organization), basename, finetune, version, size_label)


def bare_name(model_id: str) -> tuple[str | None, str | None]:
    """Returns (name, organization) of `organization/name`, without title case."""
    name, organization, *_ = Metadata.get_model_id_components(model_id[:MAX_NAME])
    return name, organization


def _title(text: str | None) -> str | None:
    return Metadata.id_to_title(text) if text else None


def folder_name(path: Path, repo_id: str | None) -> str:
    """Returns the folder's name, or the repository's id if the Hub's cache named the folder by a commit hash."""
    name = path.resolve().name
    return repo_id if repo_id and HASH.fullmatch(name) else name
