"""A lock on an open file, which the operating system drops when the process dies."""

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def lock(fd: int) -> bool:
        """Lock an open file without waiting; False when another process, or another opening of the file, holds it."""
        os.lseek(fd, 1 << 40, os.SEEK_SET)  # far behind the data: locks are mandatory there
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(fd, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def lock(fd: int) -> bool:
        """Lock an open file without waiting; False when another process, or another opening of the file, holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: two runs at once are then the user's own care
            return True
        return True


def is_still_named(fd: int, path: Path) -> bool:
    """Whether `path` is the open file `fd`: another process may have removed or replaced it before it was locked."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
