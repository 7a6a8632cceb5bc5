"""A model's vocabulary as llama.cpp has it, with or without the model's weights."""

import ctypes
import threading
from pathlib import Path
from typing import Any

import llama_cpp as llama

from ...errors import BorealisError

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_messages = threading.local()
"""llama.cpp logs in the thread that called it; several threads may load and compute at once."""


@llama.llama_log_callback
def collect_errors(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's log callback: keeps this thread's first error message, drops everything else."""
    if level == _ERROR_LEVEL and not getattr(_messages, "first", ""):
        _messages.first = text.decode("utf-8", "replace").strip()


def init_llama() -> None:
    """Initialize llama.cpp, and send its log to `collect_errors` only. To be called before a model is loaded."""
    llama.llama_log_set(collect_errors, ctypes.c_void_p(0))
    llama.llama_backend_init()
    clear_errors()


def clear_errors() -> None:
    """To be called before a llama.cpp function whose error messages are wanted."""
    _messages.first = ""


def error_clause() -> str:
    """This thread's first error message since `clear_errors`, as a clause: later ones repeat it in general words."""
    first = getattr(_messages, "first", "")
    return f": {first}" if first else ""


def open_vocabulary(path: Path) -> "Vocabulary":
    """The vocabulary of a GGUF alone: no weight is read. Raises BorealisError when llama.cpp cannot load it."""
    init_llama()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(encoded_path(path), params)
    if model is None:
        raise BorealisError(f"{path}: llama.cpp cannot load its vocabulary{error_clause()}")
    return Vocabulary(model)


def encoded_path(path: Path) -> bytes:
    """`path` as llama.cpp takes it."""
    return str(path).encode("utf-8", "surrogateescape")


class Vocabulary:
    """Tokens of a model that llama.cpp has loaded; `close()` gives the memory back."""

    def __init__(self, model: Any) -> None:
        self._model: Any = model
        self._vocab: Any = llama.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._model is not None:
            llama.llama_model_free(self._model)
        self._model = None

    @property
    def vocab(self) -> Any:
        """The `llama_vocab`, for `sampler`."""
        return self._vocab

    @property
    def bos(self) -> int | None:
        """The id that prompts begin with, or None."""
        vocab: Any = self._vocab
        bos: Any = llama.llama_vocab_bos(vocab)  # an int, whatever the binding declares
        return bos if llama.llama_vocab_get_add_bos(vocab) else None

    def token_text(self, id: int) -> str:
        """A token's name, `<bos>`; empty when there is no such token."""
        raw = llama.llama_vocab_get_text(self._vocab, id) if id >= 0 else None
        return raw.decode("utf-8", "replace") if raw else ""

    def is_control(self, id: int) -> bool:
        """Whether `tokenize` finds this token only with `special`."""
        hidden = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(llama.llama_vocab_get_attr(self._vocab, id) & hidden)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text` alone: no BOS is added. Names of control tokens become these tokens only if `special`."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise BorealisError(f"llama.cpp cannot tokenize a text of {len(data)} bytes ({count})")
        return list(ids[:count])

    def piece(self, id: int) -> bytes:
        """The bytes a generated token stands for; none for a control token."""
        if (known := self._pieces.get(id)) is None:
            known = self._pieces[id] = self._piece(id)
        return known

    def _piece(self, id: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama.llama_token_to_piece(self._vocab, id, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def is_end(self, id: int) -> bool:
        """Whether generation ends at this token."""
        if (known := self._ends.get(id)) is None:
            known = self._ends[id] = bool(llama.llama_vocab_is_eog(self._vocab, id))
        return known
