"""The `general.*` keys: who made the model, what it is called, how it likes to be sampled.

The sources, first come first served: the model card's YAML block, config.json's `_name_or_path`, the folder's name.
Names and order of the keys are llama.cpp's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType
from gguf.utility import size_label

from ..checkpoint.files import quote
from ..checkpoint.folder import Checkpoint
from ..checkpoint.jsonfile import read_json_object
from ..checkpoint.types import KV
from ..errors import InvalidInput
from ..pipeline.plan import Tensor
from .model_card import read_model_card
from .model_name import NameParts, bare_name, folder_name, parse_model_name

I32, F32, TEXT, ARRAY = GGUFValueType.INT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.ARRAY

SAMPLING = (
    ("sequence", TEXT, ("sequence",)),
    ("top_k", I32, ("top_k",)),
    ("top_p", F32, ("top_p",)),
    ("min_p", F32, ("min_p",)),
    ("xtc_probability", F32, ("xtc_probability",)),
    ("xtc_threshold", F32, ("xtc_threshold",)),
    ("temp", F32, ("temperature",)),
    ("penalty_last_n", I32, ("penalty_last_n",)),
    ("penalty_repeat", F32, ("penalty_repeat", "repetition_penalty")),
    ("mirostat", I32, ("mirostat",)),
    ("mirostat_tau", F32, ("mirostat_tau",)),
    ("mirostat_eta", F32, ("mirostat_eta",)),
)
"""general.sampling.*: the key, its type, the names in generation_config.json."""

CARD = (
    ("name", ("name", "model_name")),
    ("author", ("author", "model_author", "model_creator")),
    ("version", ("version", "model_version")),
    ("organization", ("organization", "model_organization")),
    ("finetune", ("finetune", "model_finetune")),
    ("basename", ("basename", "model_basename", "model_type")),
    ("description", ("description", "model_description")),
    ("size_label", ("size_label", "model_size_label")),
    ("license", ("license",)),
    ("license.name", ("license_name",)),
    ("license.link", ("license_link",)),
    ("source.url", ("url", "model_url")),
    ("source.doi", ("doi", "model_doi")),
    ("source.uuid", ("uuid", "model_uuid")),
    ("source.repo_url", ("repo_url", "model_repo_url")),
)
"""general.*: the key, the names in a model card. The order is that of writing."""

LISTS = (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language")))
RELATED = (
    ("base_model", ("base_model", "base_models", "base_model_sources")),
    ("dataset", ("datasets", "dataset", "dataset_sources")),
)
RELATED_KEYS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
ON_HUB = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")


def metadata_kv(checkpoint: Checkpoint, tensors: Sequence[Tensor], *, model_name: str | None = None) -> tuple[KV, ...]:
    """The general keys of `checkpoint`, sampling first. `model_name` overrides the name."""
    return general_kv(checkpoint, sum(prod(t.shape) for t in tensors), model_name=model_name)


def general_kv(checkpoint: Checkpoint, weights: int, *, model_name: str | None = None) -> tuple[KV, ...]:
    """The same for a number of `weights`; less than 0 says that it is no model's size, so there is no size label."""
    card = read_model_card(checkpoint)
    parts = _names(checkpoint, weights)
    texts = {key: _text(card, names) or getattr(parts, key, None) for key, names in CARD}
    texts["name"] = model_name or texts["name"] or folder_name(checkpoint.path, checkpoint.repo_id)
    if weights > 0 and not texts["size_label"]:
        texts["size_label"] = size_label(weights, weights, 0, 0)
    entries = [*_sampling(checkpoint.file("generation_config.json"))]
    entries += [KV(f"general.{key}", TEXT, texts[key]) for key, _ in CARD if texts[key]]
    for kind, names in RELATED:
        entries += _related(kind, card, names, weights)
    for key, names in LISTS:
        if items := [item for name in names for item in _items(card.get(name)) if isinstance(item, str)]:
            entries.append(KV(f"general.{key}", ARRAY, tuple(items), TEXT))
    return tuple(entries)


def _names(checkpoint: Checkpoint, weights: int) -> NameParts:
    parts = NameParts()
    original = checkpoint.config.get("_name_or_path")
    # More than one slash makes it a path of some computer, which says nothing about the model.
    if isinstance(original, str) and original.count("/") <= 1:
        parts = parse_model_name(original, weights)
    return parts.filled(parse_model_name(folder_name(checkpoint.path, checkpoint.repo_id), weights))


def _text(card: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these entries that is text; a list of texts is joined by commas (as licences are)."""
    for name in names:
        value = card.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        if isinstance(value, str) and value:
            return value
    return None


def _items(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _sampling(path: Path | None) -> Iterator[KV]:
    if path is None:
        return
    values = read_json_object(path)
    for key, type, names in SAMPLING:
        value = next((values[name] for name in names if name in values), None)
        if value is None or value == "":
            continue
        if not _fits(value, type):
            raise InvalidInput(f"{path}: {names[0]} is {quote(str(value))}, which is no {type.name}")
        yield KV(f"general.sampling.{key}", type, float(value) if type == F32 else value)


def _fits(value: Any, type: GGUFValueType) -> bool:
    if type == I32:
        return _is_int(value) and -(1 << 31) <= value < 1 << 31
    if type == F32:
        return (_is_int(value) or isinstance(value, float)) and abs(value) < 3.4e38  # false for NaN
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _related(kind: str, card: Mapping[str, Any], names: Sequence[str], weights: int) -> Iterator[KV]:
    """Base models and datasets: how many, then what is known of each."""
    name = next((name for name in names if name in card), None)
    if name is None:
        return
    models = [_described(item, weights) for item in _items(card[name])]
    yield KV(f"general.{kind}.count", GGUFValueType.UINT32, len(models))
    for i, model in enumerate(models):
        yield from (KV(f"general.{kind}.{i}.{key}", TEXT, model[key]) for key in RELATED_KEYS if model.get(key))


def _described(item: Any, weights: int) -> dict[str, str]:
    if isinstance(item, dict):
        return {key: value for key, value in item.items() if isinstance(value, str)}
    if not isinstance(item, str):
        return {}
    is_url = item.startswith(("http://", "https://", "ssh://"))
    on_hub = ON_HUB.fullmatch(item)
    if is_url and not on_hub:
        return {"repo_url": item}
    model_id = on_hub[1] if on_hub else item
    parts, (name, organization) = parse_model_name(model_id, weights), bare_name(model_id)
    url = item if on_hub else f"https://huggingface.co/{organization}/{name}" if organization and name else None
    found = {"name": parts.name, "version": parts.version, "organization": parts.organization, "repo_url": url}
    return {key: value for key, value in found.items() if value}
