"""Reads safetensors headers strictly.

    header length u64 | header: JSON, padded with spaces | data
    {"name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, "__metadata__": {…}}

The `safetensors` package does not return the file offsets of tensors, which a plan needs to read ranges of rows, and
it does not report duplicate names (its parser keeps the last one).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidInput
from .file_access import file_stamp, open_regular, quote, recognize
from .strict_json import MAX_JSON, parse_object
from .types import FileStamp, GGMLQuantizationType, Slice

MAX_HEADER = MAX_JSON  # room for some 60,000 tensors; the format itself allows 100 MB
MAX_DIMS = 8
MAX_NAME = 512

DTYPES = {
    "BF16": GGMLQuantizationType.BF16,
    "F16": GGMLQuantizationType.F16,
    "F32": GGMLQuantizationType.F32,
}


class UnknownDtype(InvalidInput):
    """A file holds a tensor whose dtype cannot be converted. `dtypes` maps all its tensors to their dtypes."""

    def __init__(self, text: str, dtypes: dict[str, str]) -> None:
        super().__init__(text)
        self.dtypes = dtypes


DAMAGED = "the file is damaged or incomplete, fetch it again"


def read_header(path: Path) -> dict[str, Slice]:
    """Returns the tensors of a safetensors file, ordered by offset.

    Raises InvalidInput, naming file and tensor, for a header that does not describe every byte of the file exactly
    once, and for a dtype other than BF16, F16 and F32.
    """
    file, size = open_regular(path)
    with file:
        return parse_header(path, file, size, file_stamp(path, file))


def parse_header(path: Path, file: BinaryIO, size: int, stamp: FileStamp | None = None) -> dict[str, Slice]:
    """Like `read_header`, for an open file of `size` bytes; messages name it `path`, the slices carry `stamp`."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    start = file.read(56)
    # a header length of 640 has the first bytes of a pickle, so a JSON header is not tested for other formats
    if not start.startswith(b"{") and (file_format := recognize(head + start)) is not None:
        raise InvalidInput(f"{path}: not safetensors but {file_format}")
    if len(head) < 8:
        raise InvalidInput(f"{path}: {size} bytes, too short for a safetensors file; {DAMAGED}")
    if length > MAX_HEADER:
        raise InvalidInput(f"{path}: byte 0: a header of {length} bytes is over the limit of {MAX_HEADER}")
    if length > size - 8:
        raise InvalidInput(f"{path}: byte 0: a header of {length} bytes, but the file has {size}; {DAMAGED}")
    file.seek(8)
    text = file.read(length)
    entries = parse_object(text, f"{path}: header", limit=MAX_HEADER, strict=True)
    _check_metadata(path, entries.pop("__metadata__", {}))
    try:
        slices = {name: _slice(path, name, entry, 8 + length, stamp) for name, entry in entries.items()}
    except UnknownDtype as error:
        raise UnknownDtype(str(error), _dtypes(entries)) from None
    return _check_cover(path, slices, 8 + length, size)


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidInput(f"{path}: __metadata__ must map strings to strings")


def _slice(path: Path, name: str, entry: Any, start: int, stamp: FileStamp | None) -> Slice:
    where = f"{path}: {quote(name)}"
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"{where}: not a tensor name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidInput(f"{where}: an entry has dtype, shape and data_offsets, and nothing else")
    shape, offsets = _naturals(where, "shape", entry["shape"]), _naturals(where, "data_offsets", entry["data_offsets"])
    if len(shape) > MAX_DIMS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidInput(f"{where}: shape {list(shape)[:9]} or data_offsets {list(offsets)[:3]} cannot be")
    dtype = entry["dtype"]
    type = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if type is None:
        raise UnknownDtype(f"{where}: dtype {quote(str(dtype), 20)}; only {', '.join(DTYPES)} can be converted", {})
    slice = Slice(path, start + offsets[0], type, shape, stamp=stamp)
    if slice.nbytes != offsets[1] - offsets[0]:
        span = offsets[1] - offsets[0]
        raise InvalidInput(f"{where}: {dtype} {list(shape)} takes {slice.nbytes} bytes, data_offsets hold {span}")
    return slice


def _dtypes(entries: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(entry.get("dtype")) if isinstance(entry, dict) else "" for name, entry in entries.items()}


def _naturals(where: str, field: str, value: Any) -> tuple[int, ...]:
    """Checks that `value` is a list of integers from 0 to 2**63 - 1; true and 1.0 are refused."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        raise InvalidInput(f"{where}: {field} must be a list of whole numbers from 0 on")
    return tuple(value)


def _check_cover(path: Path, slices: dict[str, Slice], start: int, size: int) -> dict[str, Slice]:
    """Checks that every byte after the header belongs to exactly one tensor; empty tensors may share an offset."""
    ordered = dict(sorted(slices.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = start
    for name, slice in ordered.items():
        if slice.offset != end:
            fault = "overlaps the tensor before it" if slice.offset < end else f"leaves a hole from byte {end}"
            raise InvalidInput(f"{path}: byte {slice.offset}: {quote(name)} {fault}")
        end += slice.nbytes
        if end > size:
            raise InvalidInput(f"{path}: {quote(name)} ends at byte {end}, the file at {size}; {DAMAGED}")
    if end != size:
        raise InvalidInput(f"{path}: byte {end}: {size - end} bytes after the last tensor belong to none")
    return ordered
