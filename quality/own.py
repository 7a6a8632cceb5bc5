"""What a checkpoint itself says about text: its tokenizer's file, its chat template, its special tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..checkpoint.jsonfile import MAX_TOKENIZER_JSON, read_json_object
from ..checkpoint.tokenizer_file import read_tokenizer_file
from ..convert.bpe import read_bpe
from ..convert.chat_template import read_chat_template
from ..convert.text_view import text_view
from ..runtime.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Own:
    """`tokenizer` is tokenizer.json, None where there is none; `ends`, the ids that end an answer, by file."""

    folder: Path
    tokenizer: Path | None
    template: ChatTemplate | None
    ends: dict[str, tuple[int, ...]]


def read_own(folder: Path) -> Own:
    """Read the checkpoint's companion files; no weight is touched. Raises InvalidInput for a damaged file."""
    checkpoint = Checkpoint(folder, None, {}, {})
    config = _optional(checkpoint, "tokenizer_config.json")
    source = read_chat_template(checkpoint, config)
    if isinstance(source, tuple):
        source = dict(source).get("default")
    template = None
    if source:
        template = ChatTemplate(source, *(_token(config, f"{kind}_token") for kind in ("bos", "eos")))
    return Own(folder, checkpoint.file("tokenizer.json"), template, dict(_ends(checkpoint)))


def read_gaps(own: Own, n_vocab: int) -> str:
    """What the checkpoint's tokenizer does to texts and no GGUF can say, in words; empty where there is nothing."""
    if not own.tokenizer:
        return ""
    json = read_tokenizer_file(own.tokenizer)
    view = text_view(json)
    if view:
        return ", ".join(view.gaps)
    config = _optional(Checkpoint(own.folder, None, {}, {}), "tokenizer_config.json")
    return ", ".join(read_bpe(own.tokenizer, json, config, n_vocab).gaps)


def _optional(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.file(name)
    return read_json_object(path, limit=MAX_TOKENIZER_JSON) if path else {}


def _token(config: dict[str, Any], key: str) -> str:
    token = config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _ends(checkpoint: Checkpoint) -> list[tuple[str, tuple[int, ...]]]:
    found = []
    for name in ("generation_config.json", "config.json"):
        value = _optional(checkpoint, name).get("eos_token_id")
        ids = tuple(id for id in (value if isinstance(value, list) else [value]) if type(id) is int)
        if ids:
            found.append((name, ids))
    return found
