"""The worker process that tokenizes and computes: reads one request from standard input, writes one answer, ends.

llama.cpp and the `tokenizers` library are native code, which may die or hang on a damaged file; here nothing dies with
them. A request is a JSON object whose "task" is a key of TASKS; the rest are that function's arguments.
"""

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..checkpoint.tokenizer_file import read_tokenizer_file
from ..errors import BorealisError
from ..runtime.process.child_process import die_quietly

NICENESS = 5
"""Steps of priority below the process that asks, which plans and encodes meanwhile."""


def main() -> None:
    """Never raises: an error is an answer."""
    die_quietly()
    if sys.platform != "win32":  # there, the parent sets the priority
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
    gc.disable()  # the process ends before there is anything to collect
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print to standard output goes to standard error
    request = json.load(sys.stdin.buffer)
    try:
        answer = TASKS[request.pop("task")](**request)
    except BorealisError as error:
        answer = {"error": str(error)}
    pipe.write(json.dumps(answer).encode("ascii"))
    pipe.close()
    sys.stderr.flush()
    os._exit(0)  # without freeing hundreds of thousands of strings one by one


def tokenize_gguf(gguf: str, texts: list[str], ask: list[int], ordinary: list[int]) -> dict[str, Any]:
    """`ids` of the texts as llama.cpp has them, with special tokens; `bos`; which tokens of `ask` are control tokens
    and end an answer; `plain`, the ids that the names of `ask` get as plain text; `back`, whether each text comes back
    from its ids; `retyped`, those of the `ordinary` tokens that llama.cpp makes control tokens.
    """
    from ..runtime.llama.vocabulary import open_vocabulary

    vocab = open_vocabulary(Path(gguf))
    return {
        "ids": [vocab.tokenize(text, special=True) for text in texts],
        "plain": [vocab.tokenize(vocab.token_text(id), special=False) for id in ask],
        "back": [_comes_back(vocab, text) for text in texts],
        "bos": vocab.bos,
        "control": [id for id in ask if vocab.is_control(id)],
        "ends": [id for id in ask if vocab.is_end(id)],
        "retyped": [vocab.token_text(id) for id in ordinary if vocab.is_control(id)],
    }


def _comes_back(vocabulary: Any, text: str) -> bool:
    data = b"".join(map(vocabulary.piece, vocabulary.tokenize(text, special=False)))
    return text.encode("utf-8", "replace") in (data, data.removeprefix(b" "))


def tokenize_reference(
    tokenizer: str, gguf: str, texts: list[str], special: dict[str, int], quick: bool
) -> dict[str, Any]:
    """`ids` of the texts as the checkpoint's own tokenizer has them; `around`, what it puts around an empty text;
    `renumbered`, the added tokens that `tokenizers` numbers otherwise than the file, of which some are among the
    `special` tokens of the GGUF. Unless `quick`, `vocabulary` and `merges` compare the GGUF's with the tokenizer's, as
    in `vocabulary_parity`.
    """
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(tokenizer)
        renumbered = dict[str, int]()
        if any(own.token_to_id(text) not in (id, None) for text, id in special.items()):
            renumbered = _renumbered(own, read_tokenizer_file(Path(tokenizer)))
        found = {"ids": _ids(own, texts, renumbered), "around": own.encode("").ids, "renumbered": renumbered}
        if not quick:
            from ..checkpoint.gguf import read_gguf
            from .text.vocabulary_parity import compare_merges, compare_texts

            header = read_gguf(Path(gguf))
            found["vocabulary"] = compare_texts(own.get_vocab(with_added_tokens=True) | renumbered, header)
            found["merges"] = compare_merges(read_tokenizer_file(Path(tokenizer)), header)
        return found
    except BorealisError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        return {"error": f"{tokenizer}: tokenizers cannot use it ({' '.join(str(error).split())})"}


def tokenize_representable(
    tokenizer: str, texts: list[str], chats: list[str], whole: list[list[int]], control: list[str], n_vocab: int
) -> dict[str, Any]:
    """`ids` of the texts, and `chats`, those of conversations, without what the GGUF's tokenizer and the GGUF's chat
    template cannot do; `gaps`, that in words. `whole` are the ids of both with all of it."""
    from tokenizers import Tokenizer

    from ..checkpoint.folder import Checkpoint
    from ..convert.tokenizers.byte_level_bpe import read_bpe
    from ..convert.tokenizers.preprocessing import SPACE, read_preprocessing
    from .text.checkpoint_text import optional_json
    from .text.representable import not_representable, representable, without_rowless_tokens

    path = Path(tokenizer)
    parsed = read_tokenizer_file(path)
    config = optional_json(Checkpoint(path.parent, None, {}, {}), "tokenizer_config.json")
    view = read_preprocessing(parsed)
    gaps = view.unsupported if view else read_bpe(path, parsed, config, n_vocab).unsupported
    try:
        kept = without_rowless_tokens(parsed, n_vocab)
        left = representable(kept, control=control), representable(kept, chat=True, control=control)
        plain = chat = Tokenizer.from_str(json.dumps(left[0]))
        if left[0] != left[1]:
            chat = Tokenizer.from_str(json.dumps(left[1]))
        renumbered = _renumbered(plain, left[0])
        found = {"ids": _ids(plain, texts, renumbered), "chats": _ids(chat, chats, renumbered)}
        rows = zip([*texts, *chats], whole, [*found["ids"], *found["chats"]], strict=True)
        rowless = [max(ids, default=0) >= n_vocab for ids in whole]
        changed = [
            text for (text, before, after), gone in zip(rows, rowless, strict=True) if before != after and not gone
        ]
        told = not_representable(parsed, gaps, control, in_spaces=any(SPACE not in text for text in changed))
        if any(rowless):
            told.append("placeholders for images, for which this model has no embedding row")
        return {**found, "gaps": told}
    except Exception as error:
        return {"error": f"{tokenizer}: tokenizers cannot use a part of it ({' '.join(str(error).split())})"}


def compute_logits(**request: Any) -> dict[str, Any]:
    from .logits import measure

    return {"prompts": measure(**request)}


def _renumbered(tokenizer: Any, json: dict[str, Any]) -> dict[str, int]:
    """Added tokens to which `tokenizers` gives another id than the one that tokenizer.json states: it counts them on
    from the end of the vocabulary, and only notices when that has gaps."""
    added = {token["content"]: token["id"] for token in json.get("added_tokens") or []}
    return {text: id for text, id in added.items() if tokenizer.token_to_id(text) not in (id, None)}


def _ids(tokenizer: Any, texts: list[str], renumbered: dict[str, int]) -> list[list[int]]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [_file_ids(encoding, renumbered) for encoding in encodings]


def _file_ids(encoding: Any, renumbered: dict[str, int]) -> list[int]:
    tokens: list[str] = encoding.tokens
    ids: list[int] = encoding.ids
    return [renumbered.get(token, id) for token, id in zip(tokens, ids, strict=True)]


TASKS = {task.__name__: task for task in (tokenize_gguf, tokenize_reference, tokenize_representable, compute_logits)}
