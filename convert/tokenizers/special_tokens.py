"""Finds the ids of special tokens (BOS, EOS, …), and which of them the tokenizer adds to a text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.file_access import quote
from ...checkpoint.types import KV
from ...errors import InvalidInput
from ..config_fields import shown

KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # the format's own spelling
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
    "eot": "eot",
    "eom": "eom",
}
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
GEMMA = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
"""Default texts if no file names an id: without a key llama.cpp assumes BOS 1 and EOS 2, the reverse of Gemma's."""


@dataclass(slots=True)
class _Specials:
    """Texts of special tokens by kind, and whether the tokenizer adds each to a text."""

    texts: dict[str, str]
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    add: dict[str, bool] = field(default_factory=dict)


def special_kv(
    where: str,
    json: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    config: Mapping[str, Any],
    tokens: Sequence[str],
    names: Mapping[str, str] = GEMMA,
    required: Sequence[str] = ("bos", "eos"),
) -> tuple[KV, ...]:
    """Returns token ids and add_*_token flags, in the order llama.cpp's converter writes them.

    An id comes from tokenizer.json's added tokens, by the text in tokenizer_config.json; else from config.json's
    `*_token_id`, if it is one number; else from the text in `names`. Raises InvalidInput for an id outside the
    vocabulary, and for a missing `required` one. A BOS that the tokenizer adds is required too.
    """
    specials = _Specials({kind: text for kind in KEYS if (text := token_text(tokenizer_config.get(f"{kind}_token")))})
    if json:
        _read_post_processor(where, json, specials, bool(tokenizer_config))
    for kind in specials.kinds:
        switch = tokenizer_config.get(f"add_{kind}_token")
        if isinstance(switch, bool):
            specials.add.setdefault(kind, switch)
    ids = dict(_ids(where, json, config, tokens, specials, names))
    for kind in dict.fromkeys((*required, *(("bos",) if specials.add.get("bos") else ()))):
        if kind not in ids:
            raise InvalidInput(f"{where}: no file says which token is {kind}; add {kind}_token_id to config.json")
    keys = [KV(f"tokenizer.ggml.{KEYS[kind]}_token_id", GGUFValueType.UINT32, id) for kind, id in ids.items()]
    switches = [
        KV(f"tokenizer.ggml.add_{kind}_token", GGUFValueType.BOOL, value)
        for kind, value in specials.add.items()
        if kind in ("bos", "eos", "sep")
    ]
    return (*keys, *switches)


def token_text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _ids(
    where: str,
    json: Mapping[str, Any],
    config: Mapping[str, Any],
    tokens: Sequence[str],
    specials: _Specials,
    names: Mapping[str, str],
) -> Iterator[tuple[str, int]]:
    added: dict[str, int] = {}
    for token in json.get("added_tokens") or []:
        added.setdefault(token["content"], token["id"])
    known_kinds: set[str] = set()
    for kind in specials.kinds:
        id = added.get(specials.texts.get(kind, ""))
        if id is not None:
            known_kinds.add(kind)
            yield kind, _in_vocabulary(where, kind, id, tokens)
    text = config.get("text_config")
    for kind in specials.kinds:
        id = config.get(f"{kind}_token_id")
        if id is None and isinstance(text, dict):
            id = text.get(f"{kind}_token_id")
        if type(id) is float and kind not in known_kinds:
            raise InvalidInput(f"{Path(where) / 'config.json'}: {kind}_token_id is {id}; it must be a whole number")
        if type(id) is int and kind not in known_kinds:
            known_kinds.add(kind)
            yield kind, _in_vocabulary(str(Path(where) / "config.json"), kind, id, tokens)
    for kind, default in names.items():
        text = specials.texts.get(kind, default)
        if kind not in known_kinds and text in tokens:
            known_kinds.add(kind)
            yield kind, tokens.index(text)


def _in_vocabulary(where: str, kind: str, id: int, tokens: Sequence[str]) -> int:
    if not 0 <= id < len(tokens):
        raise InvalidInput(f"{where}: {kind}_token_id is {shown(id)}, outside the vocabulary of {len(tokens)}")
    return id


def _read_post_processor(where: str, json: Mapping[str, Any], specials: _Specials, configured: bool) -> None:
    """Reads from tokenizer.json's post-processor which special tokens are added to a text."""
    processor = json.get("post_processor")
    if processor is None:
        return
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else [processor]
    for step in steps if isinstance(steps, list) else [steps]:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            specials.add.setdefault("bos", False)
            specials.add.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            _read_template(f"{where}: tokenizer.json: post_processor", step, specials, configured)
        else:
            raise InvalidInput(f"{where}: tokenizer.json: post_processor of type {quote(str(kind))} is not known")


def _read_template(where: str, step: Mapping[str, Any], specials: _Specials, configured: bool) -> None:
    single, pair = _template(where, step, "single"), _template(where, step, "pair")
    texts = specials.texts
    first = single[0][1] if len(single) > 1 and single[0][0] == "SpecialToken" else None
    last = single[-1][1] if len(single) > 1 and single[-1][0] == "SpecialToken" else None
    if first:
        if not configured or "bos" not in texts:
            texts["bos"] = first
        if texts["bos"] != first:
            raise InvalidInput(f"{where} begins a text with {quote(first)}, but bos_token is {quote(texts['bos'])}")
        specials.add["bos"] = True
    if last:
        if configured and texts.get("eos") != last:
            # The configured EOS then ends a turn, so it becomes EOT or EOM.
            extra = next((kind for kind in ("eot", "eom") if kind not in specials.kinds), None)
            if extra and "eos" in texts:
                specials.kinds.append(extra)
                texts[extra] = texts["eos"]
        texts["eos"] = last
        specials.add["eos"] = True
    _read_separator(pair, first, last, specials)


def _read_separator(pair: list[tuple[str, str]], first: str | None, last: str | None, specials: _Specials) -> None:
    """Sets the flag for a separator between the two texts of a pair: `A [sep] [eos] B`."""
    start = 1 if pair and first and pair[0] == ("SpecialToken", first) else 0
    stop = -1 if pair and last and pair[-1] == ("SpecialToken", last) else None
    middle = pair[start:stop]
    if len(middle) < 3 or middle[0] != ("Sequence", "A") or middle[-1] != ("Sequence", "B"):
        return
    separators = {specials.texts[kind] for kind in ("sep", "eos") if kind in specials.texts}
    between = middle[1:-1]
    add = between[0][0] == "SpecialToken" and between[0][1] in separators and not last
    if len(between) == 2 and between[1][0] == "SpecialToken" and between[1][1] in separators:
        add = True
    specials.add["sep"] = add
    if add and "sep" not in specials.texts and "eos" in specials.texts:
        specials.texts["sep"] = specials.texts["eos"]


def _template(where: str, step: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """Returns a template's items as (SpecialToken or Sequence, id)."""
    items = step.get(key) or []
    read = []
    for item in items if isinstance(items, list) else [items]:
        (kind, value), *more = item.items() if isinstance(item, dict) and item else (("", None),)
        id = value.get("id") if isinstance(value, dict) else None
        if more or kind not in ("SpecialToken", "Sequence") or not isinstance(id, str):
            raise InvalidInput(
                f"{where}: {key} holds {quote(str(item))}, which is neither a SpecialToken nor a Sequence"
            )
        read.append((kind, id))
    return read
