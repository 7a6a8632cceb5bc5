"""Reads added tokens from tokenizer.json, tokenizer_config.json and added_tokens.json."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.strict_json import read_json_object
from ...errors import InvalidInput

LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


class AddedToken(NamedTuple):
    """A token added after training, and the file that lists it; `special` is None if the file has no such flag."""

    path: Path
    id: int
    text: str
    special: bool | None


def added_tokens(where: str, json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns `added_tokens` of tokenizer.json, each with an `id` and a `content`."""
    tokens = json.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(t, dict) and type(t.get("id")) is int and isinstance(t.get("content"), str) for t in tokens
    ):
        raise InvalidInput(f"{where}: added_tokens must be a list of objects with an id and a content")
    return tokens


def declared_tokens(
    checkpoint: Checkpoint, config: Mapping[str, Any], added: Sequence[dict[str, Any]]
) -> list[AddedToken]:
    """Returns the tokens of added_tokens.json, then those of tokenizer_config.json, or without any there, those of
    tokenizer.json (`added`). Later tokens replace earlier ones with the same id."""
    path = checkpoint.path / "added_tokens.json"
    tokens = [AddedToken(path, id, text, None) for text, id in optional_json(checkpoint, "added_tokens.json").items()]
    tokens += _declared(checkpoint.path, config, added)
    for token in tokens:
        if type(token.id) is not int or token.id < 0:
            id = quote(str(token.id), 30)
            raise InvalidInput(f"{token.path}: {quote(token.text)} has the id {id}; it must be a whole number from 0")
    return tokens


def _declared(folder: Path, config: Mapping[str, Any], added: Sequence[dict[str, Any]]) -> Iterator[AddedToken]:
    path, decoder = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if not decoder:
        for token in added:
            yield AddedToken(folder / "tokenizer.json", token["id"], token["content"], bool(token.get("special")))
        return
    if not isinstance(decoder, dict):
        raise InvalidInput(f"{path}: added_tokens_decoder must be an object")
    for key, token in decoder.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and isinstance(token, dict)):
            raise InvalidInput(f"{path}: added_tokens_decoder: {quote(key)} must be a token id with an object")
        if not isinstance(token.get("content"), str):
            raise InvalidInput(f"{path}: added_tokens_decoder: id {key} has no content")
        yield AddedToken(path, int(key), token["content"], bool(token.get("special")))


def looks_special(token: str) -> bool:
    """Whether a token is a control token by its spelling, even if the checkpoint does not flag it as special."""
    wrapped = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return token in LOOKS_SPECIAL or any(token.startswith(a) and token.endswith(b) for a, b in wrapped)


def optional_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Reads the JSON object of a companion file; empty if the file does not exist."""
    path = checkpoint.file(name)
    return read_json_object(path) if path else {}
