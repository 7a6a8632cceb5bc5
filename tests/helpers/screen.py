"""A screen for windows: the one there is, or a virtual one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def missing(what: str) -> None:
    """Fail where everything must be there, else skip and say what is not."""
    if os.environ.get("CI") or os.environ.get("BOREALIS_GGUF_ALL_TESTS"):
        pytest.fail(f"{what} is missing, and all tests are wanted")
    pytest.skip(f"{what} is missing on this machine")


@contextmanager
def screen() -> Iterator[dict[str, str]]:
    """The environment variables a window needs."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY"):
        yield {"DISPLAY": os.environ.get("DISPLAY", "")}
        return
    if shutil.which("Xvfb") is None:
        missing("Xvfb, a virtual screen,")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            yield {"DISPLAY": f":{server.stdout.readline().decode('ascii').strip()}"}
        finally:
            server.terminate()
