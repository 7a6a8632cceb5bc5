"""Hooks for PyInstaller, which finds them by the package's entry point in the group `pyinstaller40`."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where the hooks are."""
    return [str(Path(__file__).parent)]
