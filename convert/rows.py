"""Rows: what an architecture calls its tensors, what GGUF calls them, and the shape the configuration gives them.

A name matches a whole template or nothing. Whatever is left over, missing or of another shape is an error that lists
names, before a weight is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.file_access import quote
from ..checkpoint.other_formats import empty_tensors
from ..checkpoint.types import Slice
from ..errors import InvalidInput
from ..pipeline.plan import RowMap, Tensor, TensorSource

BLOCK = "{bid}"


@dataclass(frozen=True, slots=True)
class RowOrder:
    """How rows change places: the first axis, seen as axes of these names, is transposed by `axes`."""

    names: tuple[str, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of tensor; `{bid}` in a name stands for the block number.

    `shape` names the axes as the checkpoint has them, row-major. With `cut`, rows past the first axis are dropped
    (padding of the vocabulary). An empty `target` is a tensor that is known and left out.
    """

    source: str
    target: str
    shape: tuple[str, ...] = ()
    shift: float = 0.0
    required: bool = True
    cut: bool = False
    order: RowOrder | None = None


def map_tensors(
    where: str,
    tensors: Mapping[str, Slice],
    rows: Sequence[Row],
    *,
    blocks: int,
    sizes: Mapping[str, int],
    plain_name: Callable[[str], str | None],
) -> tuple[Tensor, ...]:
    """The GGUF tensors that `rows` make of `tensors`, in the order of `tensors`.

    `plain_name` gives a checkpoint's name as the rows spell it, or None for a tensor of another part of the model.
    `sizes` are the lengths of the axes. Raises InvalidInput for unknown, duplicate and missing tensors and for shapes
    other than the rows'.
    """
    # Blocks are counted before names are made of them: a configuration may claim a billion.
    if blocks > len(tensors):
        raise InvalidInput(f"{where}: config.json has {blocks} layers, more than there are tensors ({len(tensors)})")
    known = {name: (row, bid) for row in rows for bid, name in _names(row, blocks)}
    plain = {name: short for name in tensors if (short := plain_name(name)) is not None}
    _refuse(where, [n for n, short in plain.items() if short not in known], "unknown to this architecture")
    _refuse(where, _duplicates(plain), "present twice, under names that mean the same")
    found = set(plain.values())
    _refuse(where, [n for n, (row, _) in known.items() if row.required and n not in found], "missing")
    return tuple(
        _tensor(tensors[name], name, *known[short], sizes) for name, short in plain.items() if known[short][0].target
    )


def _names(row: Row, blocks: int) -> list[tuple[int, str]]:
    if BLOCK not in row.source:
        return [(0, row.source)]
    return [(bid, row.source.replace(BLOCK, str(bid))) for bid in range(blocks)]


def _duplicates(plain: Mapping[str, str]) -> list[str]:
    seen: set[str] = set()
    return [name for name, short in plain.items() if short in seen or seen.add(short)]


def _refuse(where: str, names: Sequence[str], what: str) -> None:
    if not names:
        return
    listed = ", ".join(quote(name).strip("'") for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise InvalidInput(
        f"{where}: tensors {what}: {listed}{more}; is config.json the one that belongs to these weights?"
    )


def _tensor(source: Slice, name: str, row: Row, bid: int, sizes: Mapping[str, int]) -> Tensor:
    shape = tuple(sizes[axis] for axis in row.shape)
    if 0 in source.shape:
        raise InvalidInput(f"{source.path}: {name}: {empty_tensors(source.path.parent)}")
    if row.cut and source.shape[1:] == shape[1:] and source.shape[0] < shape[0]:
        raise InvalidInput(
            f"{source.path}: {name} has {source.shape[0]} rows, but vocab_size is {shape[0]}; if no token needs the "
            f"rows that are missing, set vocab_size to {source.shape[0]} in config.json"
        )
    fits = source.shape[1:] == shape[1:] and len(source.shape) == len(shape) and source.shape[0] >= shape[0]
    if not fits or (source.shape[0] > shape[0] and not row.cut):
        raise InvalidInput(
            f"{source.path}: {name}: its shape is {list(source.shape)}, but config.json makes it {list(shape)} "
            f"({' × '.join(row.shape)}); is config.json the one that belongs to these weights?"
        )
    order = RowMap(tuple(sizes[axis] for axis in row.order.names), row.order.axes) if row.order else None
    return Tensor(row.target.replace(BLOCK, str(bid)), TensorSource(source, row.shift, order), shape)
