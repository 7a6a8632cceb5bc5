"""The text files of a checkpoint: its tokenizer, its chat template, and the tokens that end an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.folder import Checkpoint
from ...checkpoint.strict_json import MAX_TOKENIZER_JSON, read_json_object
from ...convert.metadata.chat_template import read_chat_template
from ...runtime.prompting.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class CheckpointText:
    """`tokenizer` is tokenizer.json, None where there is none; `ends`, the ids that end an answer, by file name."""

    folder: Path
    tokenizer: Path | None
    template: ChatTemplate | None
    ends: dict[str, tuple[int, ...]]


def read_checkpoint_text(checkpoint: Checkpoint) -> CheckpointText:
    """Read the checkpoint's companion files; no weight is read. Raises InvalidInput for a damaged file."""
    config = optional_json(checkpoint, "tokenizer_config.json")
    source = read_chat_template(checkpoint, config)
    if isinstance(source, tuple):
        source = dict(source).get("default")
    template = None
    if source:
        template = ChatTemplate(source, *(_token_text(config, f"{kind}_token") for kind in ("bos", "eos")))
    return CheckpointText(checkpoint.path, checkpoint.file("tokenizer.json"), template, dict(_end_ids(checkpoint)))


def optional_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in a companion file; empty where there is no such file."""
    path = checkpoint.file(name)
    return read_json_object(path, limit=MAX_TOKENIZER_JSON) if path else {}


def _token_text(config: dict[str, Any], key: str) -> str:
    token = config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _end_ids(checkpoint: Checkpoint) -> list[tuple[str, tuple[int, ...]]]:
    ends = []
    generation = optional_json(checkpoint, "generation_config.json")
    for name, settings in (("generation_config.json", generation), ("config.json", checkpoint.config)):
        value = settings.get("eos_token_id")
        ids = tuple(id for id in (value if isinstance(value, list) else [value]) if type(id) is int)
        if ids:
            ends.append((name, ids))
    return ends
