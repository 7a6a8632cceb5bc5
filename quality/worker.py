"""The child that tokenizes and computes: reads one request from standard input, writes one answer, ends.

llama.cpp and the `tokenizers` library are native code, which may die on a damaged file; here nothing dies with them.
{"gguf": PATH, "texts": […], "ask": [ids]}, {"tokenizer": PATH, "texts": […]}, the same with "chats", or {"logits":
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


def of_gguf(gguf: str, texts: list[str], ask: list[int]) -> dict[str, Any]:
    """`ids` of the texts as llama.cpp has them, with special tokens; `bos`; which tokens of `ask` are control tokens
    and ends. `back` tells of each text whether its ids give it back.
    """
    vocabulary = _llama().open_vocabulary(Path(gguf))
    return {
        "ids": [vocabulary.tokenize(text, special=True) for text in texts],
        "plain": [vocabulary.tokenize(vocabulary.token_text(id), special=False) for id in ask],
        "back": [_comes_back(vocabulary, text) for text in texts],
        "bos": vocabulary.bos,
        "control": [id for id in ask if vocabulary.is_control(id)],
        "ends": [id for id in ask if vocabulary.is_end(id)],
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

    from .cut import cut

    with contextlib.suppress(Exception):
        made = cut(_in_parts(tokenizer), texts)
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
