"""Arrays that a plan takes for one and the same."""

import threading
from pathlib import Path

import pytest

from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import Slice
from borealis_gguf.errors import Cancelled, InvalidInput
from borealis_gguf.pipeline.equal_slices import CHUNK, require_equal, same_bytes
from borealis_gguf.pipeline.plan import EqualSlices
from borealis_gguf.pipeline.sources import open_local

NOT_SET = threading.Event()


@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 9])
def test_same_bytes(where: int, tmp_path: Path) -> None:
    n = 2 * CHUNK + 10
    data = bytearray(n)
    (tmp_path / "a").write_bytes(b"head" + data)
    data[where] ^= 1
    (tmp_path / "b").write_bytes(bytes(8) + data)
    (tmp_path / "c").write_bytes(bytes(8 + n))
    a, b, c = (Slice(tmp_path / name, at, T.BF16, (n // 2,)) for name, at in (("a", 4), ("b", 8), ("c", 8)))
    assert same_bytes(a, c, open_local, NOT_SET) and not same_bytes(a, b, open_local, NOT_SET)
    assert not same_bytes(a, Slice(a.path, 4, T.F16, a.shape), open_local, NOT_SET)


def test_the_message_is_the_pairs_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(8))
    (tmp_path / "b").write_bytes(bytes(7) + b"x")
    a, b, long = (Slice(tmp_path / name, 0, T.F32, (n,)) for name, n in (("a", 2), ("b", 2), ("a", 3)))
    require_equal([EqualSlices(a, a, "no")])
    with pytest.raises(InvalidInput, match=r"^the model is odd$"):
        require_equal([EqualSlices(a, a, "no"), EqualSlices(a, b, "the model is odd")])
    with pytest.raises(InvalidInput, match="ends at byte 8; the file is truncated"):
        require_equal([EqualSlices(long, long, "no")])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        require_equal([EqualSlices(a, a, "no")], stop=stop)
