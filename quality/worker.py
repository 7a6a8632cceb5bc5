"""The child that tokenizes and computes: reads one request from standard input, writes one answer, ends.

llama.cpp and the `tokenizers` library are native code, which may die on a damaged file; here nothing dies with them.
{"gguf": PATH, "texts": […], "ask": [ids], …}, {"tokenizer": PATH, "texts": […]}, the same with "chats", or {"logits":
PATH, …}: each calls a function below, or `logits.measure`, whose result is the answer. The process's arguments name
what can be opened before.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BorealisError
from ..runtime.child import die_quietly

LATER = 5
"""Steps of priority behind the process that asks: it plans and encodes meanwhile."""


def main() -> None:
    """Never raises: an error is an answer."""
    die_quietly()
    if sys.platform != "win32":  # there, whoever starts it says so
        with contextlib.suppress(OSError):
            os.nice(LATER)
    gc.disable()  # it ends before there is anything to collect
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print to standard output goes to standard error
    for ahead in sys.argv[1:]:
        _open(ahead)
    request = json.load(sys.stdin.buffer)
    try:
        answer = _answer(request)
    except BorealisError as error:
        answer = {"error": str(error)}
    pipe.write(json.dumps(answer).encode("ascii"))
    pipe.close()
    sys.stderr.flush()
    os._exit(0)  # nobody waits for hundreds of thousands of strings to be freed


def _open(ahead: str) -> None:
    """Do what the request will need. What is wrong is told when it comes, if it comes."""
    if ahead == "gguf":
        _llama().begin()
        return
    with contextlib.suppress(Exception):
        _in_parts(ahead)
        importlib.import_module("tokenizers")


def _llama() -> Any:
    """llama.cpp's vocabularies. The binding's own ways to chat, which take longest to import, are left out."""
    sys.modules.setdefault("llama_cpp.llama", ModuleType("llama_cpp.llama"))
    from ..runtime import vocabulary

    return vocabulary


@cache
def _in_parts(tokenizer: str) -> Any:
    from ..checkpoint.tokenizer_file import open_in_parts

    return open_in_parts(Path(tokenizer))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "logits" in request:
        from .logits import measure

        return {"prompts": measure(request.pop("logits"), **request)}
    if "chats" in request:
        return of_bare_tokenizer(**request)
    return of_gguf(**request) if "gguf" in request else of_tokenizer(**request)


def of_gguf(
    gguf: str, texts: list[str], ask: list[int], vocabulary: str | None = None, ids: list[int] | None = None
) -> dict[str, Any]:
    """`ids` of the texts as llama.cpp has them, with special tokens; `bos`; which tokens of `ask` are control tokens
    and ends. `back` tells of each text whether its ids give it back.

    `vocabulary` is a GGUF that holds of the vocabulary of `gguf` the tokens `ids` alone; of `gguf` itself ggml then
    reads the header.
    """
    llama = _llama()
    if vocabulary:
        llama.open_header(Path(gguf))
    vocab = llama.open_vocabulary(Path(vocabulary or gguf))
    whole = range(vocab.n_vocab) if ids is None else ids
    asked = [(id, whole.index(id)) for id in ask]

    def tokenize(text: str, *, special: bool) -> list[int]:
        return [whole[id] for id in vocab.tokenize(text, special)]

    return {
        "ids": [tokenize(text, special=True) for text in texts],
        "plain": [tokenize(vocab.token_text(own), special=False) for _, own in asked],
        "back": [_comes_back(vocab, text) for text in texts],
        "bos": None if vocab.bos is None else whole[vocab.bos],
        "control": [id for id, own in asked if vocab.is_control(own)],
        "ends": [id for id, own in asked if vocab.is_end(own)],
    }


def _comes_back(vocabulary: Any, text: str) -> bool:
    data = b"".join(map(vocabulary.piece, vocabulary.tokenize(text, special=False)))
    return text.encode("utf-8", "replace") in (data, data.removeprefix(b" "))


def of_tokenizer(tokenizer: str, texts: list[str], less: bool = False) -> dict[str, Any]:
    """`ids` of the texts as the checkpoint's own tokenizer has them; `around`, what it puts around an empty text.

    `less` is without what these texts have no use for (see `cut`).
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return {"missing": True}
    try:
        own = (_cut(tokenizer, texts) if less else None) or Tokenizer.from_file(tokenizer)
        return {"ids": _ids(own, texts), "around": own.encode("").ids}
    except Exception as error:  # the library raises bare Exceptions
        return {"error": f"{tokenizer}: tokenizers cannot use it ({' '.join(str(error).split())})"}


def _cut(tokenizer: str, texts: list[str]) -> Any:
    """The tokenizer cut down to `texts`; None where that does not work, for whatever reason: the whole one knows."""
    from tokenizers import Tokenizer

    from .cut import cut_tokenizer

    with contextlib.suppress(Exception):
        made = cut_tokenizer(_in_parts(tokenizer), texts)
        return made and Tokenizer.from_str(made)


def of_bare_tokenizer(tokenizer: str, texts: list[str], chats: list[str]) -> dict[str, Any]:
    """`ids` of the texts, and `chats`, those of conversations, without what the GGUF's tokenizer and the GGUF's chat
    template cannot do; the library is there.
    """
    from tokenizers import Tokenizer

    from ..checkpoint.tokenizer_file import read_tokenizer_file
    from .bare import bare

    whole = read_tokenizer_file(Path(tokenizer))
    try:
        plain, chat = (Tokenizer.from_str(json.dumps(bare(whole, chat=chat))) for chat in (False, True))
        return {"ids": _ids(plain, texts), "chats": _ids(chat, chats)}
    except Exception as error:
        return {"error": f"{tokenizer}: tokenizers cannot use a part of it ({' '.join(str(error).split())})"}


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
