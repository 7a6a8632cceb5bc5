"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """The cores this process may use: fewer than there are where it is pinned to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
