"""Known differences of tokenizers: texts that get other ids because a GGUF cannot express a step of the tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import BorealisError
from ..check_worker_client import PendingRequest


@dataclass(frozen=True, slots=True)
class KnownDifferences:
    """`description` says what a GGUF cannot express; empty where ids agree or nothing is known.

    `ids` of the lines and `chat_ids` of conversations by name are those of the checkpoint's tokenizer without that.
    `problem`: why they could not be computed.
    """

    description: str = ""
    problem: str = ""
    ids: Sequence[Sequence[int]] = ()
    chat_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)


def known_differences(
    tokenizer: str,
    lines: Sequence[str],
    chats: Mapping[str, str],
    *,
    gguf: Mapping[str, Any],
    reference: Mapping[str, Any],
    n_vocab: int,
) -> KnownDifferences:
    """Tokenize without what a GGUF cannot express, in a worker. It takes as long as all other text checks together.

    `gguf` and `reference` are the workers' answers about both tokenizers.
    """
    request: dict[str, Any] = {"tokenizer": tokenizer, "texts": list(lines), "chats": list(chats.values())}
    request |= {"reference_ids": reference["ids"], "control": gguf["made_control"], "n_vocab": n_vocab}
    pending = PendingRequest("tokenize_representable", f"tokenizers read a part of {tokenizer}", request)
    try:
        answer = pending.result()
    except BorealisError as error:
        return KnownDifferences(problem=str(error))
    finally:
        pending.close()
    chat_ids = dict(zip(chats, answer["chat_ids"], strict=True))
    return KnownDifferences("; ".join(answer["description"]), ids=answer["ids"], chat_ids=chat_ids)
