"""Which part of an importance matrix belongs to which tensor."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..checkpoint.imatrix import Imatrix
from ..errors import InvalidInput
from .mixture import TOKEN_EMBD_NAMES


def importance_of(imatrix: Imatrix, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The importance [n_per_row] float32 of the columns of tensor `name`; None when the matrix says nothing of it.

    Raises InvalidInput when it was made for a model of another width. An embedding's is ignored then, as in llama.cpp.
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
    return values


def select(imatrix: Imatrix, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
    """`imatrix` without the tensors that hold a text of `exclude` in their name, or with those of `include` alone."""
    if include and exclude:
        raise InvalidInput("--include-weights and --exclude-weights cannot be used together")
    kept = {
        name: values
        for name, values in imatrix.entries.items()
        if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
    }
    return replace(imatrix, entries=kept)
