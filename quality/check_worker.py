"""The worker process that tokenizes and computes: reads a request from standard input, writes an answer, ends.

llama.cpp and the `tokenizers` library are native code, which may crash or hang on a damaged file: the app's process
must survive that. A request is a JSON object whose "task" is a key of TASKS; its other items are the arguments of that
function.
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
"""Steps of priority below the parent process, which plans and encodes meanwhile."""


def main() -> None:
    """Answer one request; a BorealisError is an answer, too."""
    die_quietly()
    if sys.platform != "win32":  # there, the parent sets the priority
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
    gc.disable()  # the process ends before collecting would pay
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


def tokenize_gguf(gguf: str, texts: list[str], special_ids: list[int], text_ids: list[int]) -> dict[str, Any]:
    """`ids` of the texts in llama.cpp, with special tokens; `round_trips`, whether each text comes back from its ids;
    `bos`; `name_ids`, the ids that the names of `special_ids` get as plain text; which of `special_ids` are `control`
    tokens, and which are `ends` of an answer; `made_control`, names of `text_ids` that llama.cpp makes control tokens.
    """
    from ..runtime.llama.vocabulary import open_vocabulary

    vocabulary = open_vocabulary(Path(gguf))
    return {
        "ids": [vocabulary.tokenize(text, special=True) for text in texts],
        "round_trips": [_comes_back(vocabulary, text) for text in texts],
        "bos": vocabulary.bos,
        "name_ids": [vocabulary.tokenize(vocabulary.token_text(id), special=False) for id in special_ids],
        "control": [id for id in special_ids if vocabulary.is_control(id)],
        "ends": [id for id in special_ids if vocabulary.is_end(id)],
        "made_control": [vocabulary.token_text(id) for id in text_ids if vocabulary.is_control(id)],
    }


def _comes_back(vocabulary: Any, text: str) -> bool:
    data = b"".join(map(vocabulary.piece, vocabulary.tokenize(text, special=False)))
    return text.encode("utf-8", "replace") in (data, data.removeprefix(b" "))


def tokenize_reference(
    tokenizer: str, texts: list[str], special_tokens: dict[str, int], gguf_tables: dict[str, Any] | None
) -> dict[str, Any]:
    """`ids` of the texts by the checkpoint's own tokenizer; `around_empty_text`, the tokens it puts around one;
    `renumbered`, the added tokens that `tokenizers` numbers otherwise than the file, if one of the GGUF's
    `special_tokens` is among them. With `gguf_tables`, `vocabulary` and `merges` compare these with the tokenizer's,
    as in `vocabulary_parity`.
    """
    from tokenizers import Tokenizer

    try:
        reference = Tokenizer.from_file(tokenizer)
        renumbered = dict[str, int]()
        if any(reference.token_to_id(text) not in (id, None) for text, id in special_tokens.items()):
            renumbered = _renumbered(reference, read_tokenizer_file(Path(tokenizer)))
        ids, around = _ids(reference, texts, renumbered), reference.encode("").ids
        answer = {"ids": ids, "around_empty_text": around, "renumbered": renumbered}
        if gguf_tables:
            from .text.vocabulary_parity import compare_merges, compare_texts

            vocabulary = reference.get_vocab(with_added_tokens=True) | renumbered
            answer["vocabulary"] = compare_texts(vocabulary, gguf_tables)
            answer["merges"] = compare_merges(read_tokenizer_file(Path(tokenizer)), gguf_tables)
        return answer
    except BorealisError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        return {"error": f"{tokenizer}: tokenizers cannot use it ({' '.join(str(error).split())})"}


def tokenize_representable(
    tokenizer: str,
    texts: list[str],
    chats: list[str],
    reference_ids: list[list[int]],
    control: list[str],
    n_vocab: int,
) -> dict[str, Any]:
    """`ids` of the texts, and `chat_ids` of rendered conversations, by the checkpoint's tokenizer without what the
    GGUF's tokenizer and the GGUF's chat template cannot do; `description`, what that is. `reference_ids` are those of
    the texts and conversations by the whole tokenizer; `control`, names that llama.cpp takes for control tokens.
    """
    from tokenizers import Tokenizer

    from ..checkpoint.folder import Checkpoint
    from ..convert.tokenizers.byte_level_bpe import read_bpe
    from ..convert.tokenizers.preprocessing import SPACE, read_preprocessing
    from .text.checkpoint_text import optional_json
    from .text.representable import not_representable, representable, without_rowless_tokens

    path = Path(tokenizer)
    parsed = read_tokenizer_file(path)
    config = optional_json(Checkpoint(path.parent, None, {}, {}), "tokenizer_config.json")
    preprocessing = read_preprocessing(parsed)
    unsupported = (preprocessing or read_bpe(path, parsed, config, n_vocab)).unsupported
    try:
        kept = without_rowless_tokens(parsed, n_vocab)
        for_texts, for_chats = representable(kept, control=control), representable(kept, chat=True, control=control)
        tokenizer_of_texts = tokenizer_of_chats = Tokenizer.from_str(json.dumps(for_texts))
        if for_texts != for_chats:
            tokenizer_of_chats = Tokenizer.from_str(json.dumps(for_chats))
        renumbered = _renumbered(tokenizer_of_texts, for_texts)
        ids, chat_ids = _ids(tokenizer_of_texts, texts, renumbered), _ids(tokenizer_of_chats, chats, renumbered)
        rows = zip([*texts, *chats], reference_ids, [*ids, *chat_ids], strict=True)
        rowless = [max(row, default=0) >= n_vocab for row in reference_ids]
        changed = [
            text for (text, before, after), no_row in zip(rows, rowless, strict=True) if before != after and not no_row
        ]
        described = not_representable(
            parsed, unsupported, control, in_spaces=any(SPACE not in text for text in changed)
        )
        if any(rowless):
            described.append("placeholders for images, for which this model has no embedding row")
        return {"ids": ids, "chat_ids": chat_ids, "description": described}
    except Exception as error:
        return {"error": f"{tokenizer}: tokenizers cannot use a part of it ({' '.join(str(error).split())})"}


def compute_logits(**request: Any) -> dict[str, Any]:
    """`prompts`: for each, how far the GGUF's probabilities are from the checkpoint's, as in `measure_divergence`."""
    from .logits import measure_divergence

    return {"prompts": measure_divergence(**request)}


def _renumbered(tokenizer: Any, json: dict[str, Any]) -> dict[str, int]:
    """Added tokens to which `tokenizers` gives another id than tokenizer.json states: it numbers them from the end of
    the vocabulary on, which is wrong where the vocabulary has gaps."""
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
