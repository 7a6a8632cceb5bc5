"""llama.cpp's ids of a vocabulary that is only metadata, beside those of the `tokenizers` library."""

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import llama_cpp as llama
from gguf.constants import GGUFValueType
from tokenizers import Tokenizer

from borealis_gguf import BorealisError
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import GGUFModel

from .norwegian_lines import LINES


@dataclass(frozen=True, slots=True)
class Gap:
    """`different` of `lines` lines get other ids; of the first, its text, llama.cpp's ids and the tokenizer's."""

    lines: int
    different: int
    example: str = ""
    ours: tuple[int, ...] = ()
    theirs: tuple[int, ...] = ()


def measure(
    kv: Sequence[KV], tokenizer_json: Path, lines: Sequence[str] = LINES, *, steps: Sequence[Callable[[str], str]] = ()
) -> Gap:
    """Compare the vocabulary in `kv` with tokenizer.json.

    `steps` are done to what llama.cpp reads, and not to what the tokenizer reads.
    """
    theirs = Tokenizer.from_file(str(tokenizer_json))
    wanted = [tuple(theirs.encode(line, add_special_tokens=False).ids) for line in lines]
    found = tokenize(kv, [reduce(lambda text, step: step(text), steps, line) for line in lines])
    gaps = [row for row in zip(lines, found, wanted, strict=True) if row[1] != row[2]]
    return Gap(len(lines), len(gaps), *gaps[0]) if gaps else Gap(len(lines), 0)


def tokenize(kv: Sequence[KV], lines: Sequence[str], *, special: bool = False) -> list[tuple[int, ...]]:
    """The ids llama.cpp gives `lines` with the vocabulary in `kv`, without a BOS. With `special`, names of control
    tokens are these tokens."""
    architecture = KV("general.architecture", GGUFValueType.STRING, "llama")
    entries = (architecture, *(entry for entry in kv if entry.key.startswith("tokenizer.ggml.")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(lay_out(path, GGUFModel(entries, ()), []).header)
        llama.llama_log_set(_silent, ctypes.c_void_p(0))
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        model: Any = llama.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), parameters)
    if model is None:
        raise BorealisError("llama.cpp cannot load this vocabulary")
    try:
        vocab: Any = llama.llama_model_get_vocab(model)
        return [_ids(vocab, line, special) for line in lines]
    finally:
        llama.llama_model_free(model)


@llama.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    pass


def _ids(vocab: Any, line: str, special: bool) -> tuple[int, ...]:
    data = line.encode("utf-8")
    room = len(data) + 8
    ids = (llama.llama_token * room)()
    return tuple(ids[: llama.llama_tokenize(vocab, data, len(data), ids, room, False, special)])
