"""Whether two stored tensors are the same, read in step with bounded memory."""

from ..checkpoint.file_access import open_regular
from ..checkpoint.types import Slice
from ..errors import InvalidInput

STEP = 4 << 20


def same_bytes(a: Slice, b: Slice) -> bool:
    """True when both have the same type, shape and bytes. The first difference ends the reading."""
    if (a.type, a.shape) != (b.type, b.shape):
        return False
    left, right = open_regular(a.path)[0], open_regular(b.path)[0]
    with left, right:
        left.seek(a.offset)
        right.seek(b.offset)
        rest = a.nbytes
        while rest:
            one, other = left.read(min(STEP, rest)), right.read(min(STEP, rest))
            if not one:
                raise InvalidInput(f"{a.path}: ends at byte {left.tell()}; the file is truncated: fetch it again")
            if one != other:
                return False
            rest -= len(one)
    return True
