"""Maps tensor names of a checkpoint to GGUF names with a table of rows, and checks shapes against config.json.

A name must match a row's template as a whole. Unknown, missing and misshapen tensors raise an error that lists their
names, before weights are read.
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
    """A permutation of rows: the first axis is split into the axes `names`, which are transposed by `axes`."""

    names: tuple[str, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of tensor; `{bid}` in a name is the block number.

    `shape` names the axes in the checkpoint's row-major order. With `cut`, surplus rows are dropped (padding of the
    vocabulary). A tensor whose `target` is empty is not written.
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
    """Maps `tensors` to GGUF tensors by `rows`, keeping their order.

    `plain_name` turns a checkpoint's tensor name into the rows' spelling, or returns None for a tensor of another part
    of the model. `sizes` are the lengths of the axes. Raises InvalidInput for unknown, duplicate, missing and
    misshapen tensors.
    """
    # Limits the number of generated names: a damaged configuration may claim a billion layers.
    if blocks > len(tensors):
        raise InvalidInput(f"{where}: config.json has {blocks} layers, more than there are tensors ({len(tensors)})")
    known = {name: (row, bid) for row in rows for bid, name in _row_names(row, blocks)}
    plain = {name: short for name in tensors if (short := plain_name(name)) is not None}
    _refuse(where, [n for n, short in plain.items() if short not in known], "unknown to this architecture")
    _refuse(where, _duplicates(plain), "present twice, under names that mean the same")
    present = set(plain.values())
    _refuse(where, [n for n, (row, _) in known.items() if row.required and n not in present], "missing")
    return tuple(
        _tensor(tensors[name], name, *known[short], sizes) for name, short in plain.items() if known[short][0].target
    )


def _row_names(row: Row, blocks: int) -> list[tuple[int, str]]:
    if BLOCK not in row.source:
        return [(0, row.source)]
    return [(bid, row.source.replace(BLOCK, str(bid))) for bid in range(blocks)]


def _duplicates(plain: Mapping[str, str]) -> list[str]:
    seen: set[str] = set()
    return [name for name, short in plain.items() if short in seen or seen.add(short)]


def _refuse(where: str, names: Sequence[str], problem: str) -> None:
    if not names:
        return
    listed = ", ".join(quote(name).strip("'") for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise InvalidInput(
        f"{where}: tensors {problem}: {listed}{more}; is config.json the one that belongs to these weights?"
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
