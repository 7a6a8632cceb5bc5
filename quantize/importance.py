"""The importance of each tensor's columns, out of an importance matrix, and the tensors that the matrix lacks."""

import logging
from collections.abc import Iterable

import numpy as np

from ..checkpoint.imatrix import Imatrix
from ..checkpoint.types import UNQUANTIZED, GGMLQuantizationType
from ..errors import InvalidInput
from .mixture import OUTPUT, TOKEN_EMBD_NAMES, category

T = GGMLQuantizationType

IGNORE_IMPORTANCE = UNQUANTIZED | {T.Q8_0, T.Q1_0, T.Q2_0, T.MXFP4, T.TQ1_0, T.TQ2_0}
"""Types that come out the same with and without an importance matrix."""

log = logging.getLogger("borealis_gguf")


def importance_of(imatrix: Imatrix, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The importance [n_per_row] float32 of the columns of tensor `name`; None if the matrix has none.

    It has none for a tensor whose values are all zero: every weight would become zero. Raises InvalidInput when it was
    made for a model of another width. An embedding's is ignored then, as in llama.cpp.
    """
    values = imatrix.entries.get(name)
    (n_per_row,), (stacked,) = shape[-1:], shape[-3:-2] or (1,)
    if values is None:
        return None
    if values.size != n_per_row * stacked:
        if name in TOKEN_EMBD_NAMES:
            return None
        raise InvalidInput(
            f"{name}: has {n_per_row} columns, the importance matrix {values.size}; it is another model's"
        )
    if stacked > 1:
        raise InvalidInput(f"{name}: an importance matrix for stacked experts is not supported")
    return values if values.any() else None


def what_is_missing(imatrix: Imatrix, name: str) -> str:
    """Why `importance_of` gives None."""
    return "only zeros" if name in imatrix.entries else "no entry"


def warn_of_gaps(where: str, imatrix: Imatrix, tensors: Iterable[tuple[str, GGMLQuantizationType, bool]]) -> None:
    """Warn once of all tensors, given as (name, type, whether it has an importance), that could use one but lack it.

    llama-imatrix collects nothing for embeddings and the output layer, so those are not gaps.
    """
    by_name = {
        name: what_is_missing(imatrix, name)
        for name, type, has in tensors
        if not has and type not in IGNORE_IMPORTANCE and name not in TOKEN_EMBD_NAMES and category(name) != OUTPUT
    }
    for what in sorted(set(by_name.values())):
        names = [name for name, missing in by_name.items() if missing == what]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        log.warning(
            "%s: has %s for %s%s: quantized as without an importance matrix", where, what, ", ".join(names[:4]), more
        )
