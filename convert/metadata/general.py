"""Builds the `general.*` keys: name, author, license, base models, sampling defaults.

Sources in order of precedence: the model card's YAML block, config.json's `_name_or_path`, the folder's name. Names
and order of the keys are llama.cpp's.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from gguf.constants import GGUFValueType
from gguf.utility import size_label

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.local_paths import is_local_model, is_local_path
from ...checkpoint.strict_json import read_json_object
from ...checkpoint.types import KV
from ...errors import InvalidInput
from ...pipeline.plan import Tensor
from ...sampling_ranges import KEYS, sampling_fault
from ..tokenizers.token_validation import is_text
from .model_card import read_model_card
from .model_name import NameParts, bare_name, folder_name, parse_model_name

log = logging.getLogger("borealis_gguf")

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
"""general.sampling.*: key, type, and names in generation_config.json."""

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
"""general.*: key, and names in a model card, in the order of writing."""

LISTS = (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language")))
RELATED = (
    ("base_model", ("base_model", "base_models", "base_model_sources")),
    ("dataset", ("datasets", "dataset", "dataset_sources")),
)
RELATED_KEYS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
CARD_KEYS = frozenset(name for _, names in (*CARD, *LISTS, *RELATED) for name in names)
ON_HUB = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")


def metadata_kv(checkpoint: Checkpoint, tensors: Sequence[Tensor], *, model_name: str | None = None) -> tuple[KV, ...]:
    """Returns the general keys of `checkpoint`, sampling defaults first. `model_name` overrides the name."""
    return general_kv(checkpoint, sum(prod(t.shape) for t in tensors), model_name=model_name)


def general_kv(checkpoint: Checkpoint, weights: int, *, model_name: str | None = None) -> tuple[KV, ...]:
    """Like `metadata_kv`, for a number of `weights`; a negative number (an adapter's) gives no size label."""
    card = _Card(read_model_card(checkpoint, CARD_KEYS))
    parts = _name_parts(checkpoint, weights)
    texts = {key: card.text(names) or getattr(parts, key, None) for key, names in CARD}
    texts["name"] = model_name or texts["name"] or folder_name(checkpoint.path, checkpoint.repo_id)
    if weights > 0 and not texts["size_label"]:
        texts["size_label"] = size_label(weights, weights, 0, 0)
    entries = [*_sampling(checkpoint)]
    entries += [KV(f"general.{key}", TEXT, texts[key]) for key, _ in CARD if texts[key]]
    for kind, names in RELATED:
        entries += _related(kind, card, names, weights)
    for key, names in LISTS:
        if items := [item for name in names for item in card.texts(name)]:
            entries.append(KV(f"general.{key}", ARRAY, tuple(items), TEXT))
    if card.left_out:
        more = f"; and {len(card.left_out) - 8} more" if len(card.left_out) > 8 else ""
        checkpoint.warn(f"{checkpoint.path / 'README.md'}: left out of the GGUF: {'; '.join(card.left_out[:8])}{more}")
    return tuple(entries)


def _name_parts(checkpoint: Checkpoint, weights: int) -> NameParts:
    parts = NameParts()
    original = checkpoint.config.get("_name_or_path")
    if isinstance(original, str):
        # A local path does not name the model.
        if is_local_model(original):
            log.info("%s: _name_or_path is a local path and not used", checkpoint.path / "config.json")
        else:
            parts = parse_model_name(original, weights)
    return parts.filled(parse_model_name(folder_name(checkpoint.path, checkpoint.repo_id), weights))


class _Card:
    """A model card's entries without unpublishable values; `left_out` lists these with reasons."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.left_out: list[str] = []

    def text(self, names: Sequence[str]) -> str | None:
        """Returns the first of the entries `names` that has text; a list of texts is joined by commas."""
        for name in names:
            if text := ",".join(self.texts(name)):
                return text
        return None

    def texts(self, name: str) -> list[str]:
        """Returns the publishable texts of an entry, which is a text or a list."""
        items = _items(self.values.get(name))
        return [item for item in items if isinstance(item, str) and self.allows(name, item, is_local_path)]

    def allows(self, name: str, text: str, is_path: Callable[[str], bool]) -> bool:
        """Whether `text`, a value of the entry `name`, may be published; records a refusal in `left_out`."""
        reason = "a local path" if is_path(text) else None if is_text(text) else "not text"
        if reason:
            self.left_out.append(f"{name} ({quote(text, 60)} is {reason})")
        return reason is None


def _items(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _sampling(checkpoint: Checkpoint) -> Iterator[KV]:
    """Yields the sampling defaults, without values that a run of the GGUF would refuse."""
    path = checkpoint.file("generation_config.json")
    if path is None:
        return
    values = read_json_object(path)
    for key, type, names in SAMPLING:
        value = next((values[name] for name in names if name in values), None)
        if value is None or value == "":
            continue
        if not _fits(value, type):
            raise InvalidInput(f"{path}: {names[0]} is {quote(str(value))}, which is no {type.name}")
        full_key = f"general.sampling.{key}"
        if full_key in KEYS and (fault := sampling_fault(KEYS[full_key], value)):
            checkpoint.warn(f"{path}: left out of the GGUF, since a run would refuse it: {names[-1]} {fault}")
            continue
        yield KV(full_key, type, float(value) if type == F32 else value)


def _fits(value: Any, type: GGUFValueType) -> bool:
    if type == I32:
        return _is_int(value) and -(1 << 31) <= value < 1 << 31
    if type == F32:
        return (_is_int(value) or isinstance(value, float)) and abs(value) < 3.4e38  # false for NaN
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _related(kind: str, card: _Card, names: Sequence[str], weights: int) -> Iterator[KV]:
    """Yields the count and the keys of base models or datasets. An empty list gives a count of 0, as in llama.cpp's
    converter; a list whose items are all left out gives no key."""
    name = next((name for name in names if name in card.values), None)
    if name is None:
        return
    items = _items(card.values[name])
    models = [model for item in items if (model := _related_model(card, name, item, weights))]
    if models or not items:
        yield KV(f"general.{kind}.count", GGUFValueType.UINT32, len(models))
    for i, model in enumerate(models):
        yield from (KV(f"general.{kind}.{i}.{key}", TEXT, model[key]) for key in RELATED_KEYS if model.get(key))


def _related_model(card: _Card, name: str, item: Any, weights: int) -> dict[str, str]:
    """Returns name, version, organization and URL of a base model or dataset; empty if it is left out."""
    if isinstance(item, dict):
        texts = {key: item[key] for key in RELATED_KEYS if isinstance(item.get(key), str)}
        return {key: text for key, text in texts.items() if card.allows(f"{name}.{key}", text, is_local_path)}
    if not isinstance(item, str) or not card.allows(name, item, is_local_model):
        return {}
    is_url = item.startswith(("http://", "https://", "ssh://"))
    on_hub = ON_HUB.fullmatch(item)
    if is_url and not on_hub:
        return {"repo_url": item}
    model_id = on_hub[1] if on_hub else item
    parts, (bare, organization) = parse_model_name(model_id, weights), bare_name(model_id)
    url = item if on_hub else f"https://huggingface.co/{organization}/{bare}" if organization and bare else None
    parts_of_id = {"name": parts.name, "version": parts.version, "organization": parts.organization, "repo_url": url}
    return {key: value for key, value in parts_of_id.items() if value}
