"""A GGUF's vocabulary cut down to what some texts can use: of these llama.cpp gives the same ids. See `cut`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf.constants import GGUFValueType

from ..checkpoint.types import KV
from ..convert.bpe import LETTER_OF_BYTE
from ..convert.tokenizer import SPACE, TokenType
from .cut import Held

OF_TOKENIZER = "tokenizer.ggml."
KIND, PREFIX, TOKENS, SCORES, TYPES, MERGES = (
    OF_TOKENIZER + name for name in ("model", "add_space_prefix", "tokens", "scores", "token_type", "merges")
)
BY_ID = {TOKENS, SCORES, TYPES}
JOINED = {int(TokenType.NORMAL), int(TokenType.UNUSED)}
"""Types of tokens that a text makes only by joining."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Metadata with the tokens of `ids` alone, which are there numbered from 0 on."""

    entries: Sequence[KV]
    ids: Sequence[int]


def cut_vocabulary(entries: Sequence[KV], texts: Sequence[str], keep: Collection[int]) -> Cut | None:
    """A GGUF's metadata, less the tokens that `texts` have no use for; special ones and those of the ids `keep` stay,
    and what their names as plain text need. None where nothing can be cut.
    """
    by_key = {kv.key: kv for kv in entries if kv.key.startswith(OF_TOKENIZER)}
    lists = {kv.key: kv.value for kv in by_key.values() if kv.type is GGUFValueType.ARRAY}
    merges, tokens, types = lists.pop(MERGES, ()), lists.get(TOKENS, ()), lists.get(TYPES, ())
    special = [id for id, kind in enumerate(types) if kind not in JOINED]
    texts = [*texts, *(tokens[id] for id in keep)]
    text = _seen_by_llama(by_key, texts, [tokens[id] for id in special if id < len(tokens)])
    if text is None or not lists.keys() <= BY_ID or any(len(values) != len(tokens) for values in lists.values()):
        return None
    held = Held(text)
    roles = {key: kv.value for key, kv in by_key.items() if key.endswith("_token_id") and type(kv.value) is int}
    left = {*keep, *roles.values(), *special, *held.among(tokens, range(len(tokens)))}
    ids = sorted(id for id in left if 0 <= id < len(tokens))
    place = {id: n for n, id in enumerate(ids)}
    changed: dict[str, Any] = {key: [values[id] for id in ids] for key, values in lists.items()}
    changed |= {key: place.get(id, id) for key, id in roles.items()}
    changed[MERGES] = held.among([merge.replace(" ", "", 1) for merge in merges], merges)
    return Cut([replace(kv, value=changed.get(kv.key, kv.value)) for kv in entries], ids)


def _seen_by_llama(by_key: Mapping[str, KV], texts: Sequence[str], special: Sequence[str]) -> str | None:
    """What llama.cpp joins pieces of, as one text; None for a kind of tokenizer that does something else."""
    kind, whole = by_key[KIND].value if KIND in by_key else "", "\n".join(texts)
    if kind == "gpt2":
        return whole.encode("utf-8", "replace").decode("latin-1").translate(LETTER_OF_BYTE)
    if kind != "llama":
        return None
    spaced = whole.replace(" ", SPACE)
    if PREFIX in by_key and not by_key[PREFIX].value:
        return spaced
    between = spaced
    for token in special:  # what follows one has a space in front, too
        between = between.replace(token.replace(" ", SPACE), "\n")
    return spaced + "".join(f"\n{SPACE}{line}" for line in f"{spaced}\n{between}".split("\n"))
