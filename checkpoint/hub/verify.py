"""Verifies files in the Hub's cache against the SHA digests that the Hub publishes.

huggingface_hub compares lengths only, so a download that was resumed with wrong bytes goes unnoticed. Each file is
therefore hashed once. The result is cached with the file's size, modification time and inode, and is valid until one
of them changes.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import BorealisError
from ...machine_cache import read_note, write_note
from ..file_access import extended, open_regular, shown
from .errors import ask
from .retry import TransientError

NOTES = "verified"
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""The git blob SHA-1 of a small file, or the SHA-256 of a file in LFS."""

BLOCK = 4 << 20

log = logging.getLogger("borealis_gguf")


def verify(repo_id: str, folder: Path, names: Sequence[str], on_progress: Callable[[int, int], None] | None) -> None:
    """Hashes the files `names` of a snapshot in the Hub's cache, except files verified before and unchanged since.

    `on_progress(done, total)` counts hashed bytes. Files with a wrong digest are removed from the cache, and
    BorealisError is raised.
    """
    folder = extended(folder)
    note = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    verified = read_note(NOTES, note)
    stamps = {name: _stamp(folder / name) for name in names}
    unverified = [name for name in names if verified.get(name) != stamps[name]]
    if not unverified:
        return
    done, total = 0, sum(stamps[name][0] for name in unverified)

    def count_bytes(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress:
            on_progress(done, total)

    digests = _digests_of_commit(repo_id, folder.name)
    unverifiable: list[str] = []
    bad: list[str] = []
    try:
        for name in unverified:
            expected = digests.get(name) or _digest_in_link(folder / name)
            if expected is None:
                unverifiable.append(name)
            elif _digest(folder / name, expected, count_bytes) == expected:
                verified[name] = stamps[name]
            else:
                bad.append(name)
    finally:
        write_note(NOTES, note, verified)
    if unverifiable:
        log.warning("%s: the Hub cannot be asked now whether these are its files: %s", folder, _listed(unverifiable))
    if bad:
        raise _remove_all(repo_id, folder, bad)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _digests_of_commit(repo_id: str, commit: str) -> dict[str, str]:
    """Returns the digest of every file of a commit; empty if the Hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        listed = ask(lambda: list(HfApi().list_repo_tree(repo_id, recursive=True, revision=commit)), repo_id, commit)
    except (BorealisError, TransientError):
        return {}
    files = [entry for entry in listed if isinstance(entry, RepoFile)]
    by_name = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    return {name: digest for name, digest in by_name.items() if DIGEST.fullmatch(digest)}


def _digest_in_link(path: Path) -> str | None:
    """Returns the digest from the link target's name: the cache names files after their ETags."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if DIGEST.fullmatch(name) else None


def _digest(path: Path, expected: str, step: Callable[[int], None]) -> str:
    """Computes the digest of a file, SHA-1 or SHA-256 by the length of `expected`."""
    file, size = open_regular(path)
    large = len(expected) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file:
        while block := file.read(BLOCK):
            digest.update(block)
            step(len(block))
    return digest.hexdigest()


def _remove_all(repo_id: str, folder: Path, names: Sequence[str]) -> BorealisError:
    """Removes files from the cache, and returns the error to raise."""
    problem = f"{repo_id}: {_listed(names)}: other bytes than the Hub has under this name"
    try:
        for name in names:
            _remove(folder / name, folder.parents[2])
    except OSError as error:
        return BorealisError(f"{problem}; remove {error.filename} ({error.strerror}), then run again")
    return BorealisError(f"{problem}; removed from the cache, so run again to fetch it anew")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")


def _remove(path: Path, cache: Path) -> None:
    """Removes a file and the files it links to, as far as they lie in the Hub's cache."""
    while path.is_relative_to(cache):
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = Path(os.path.normpath(target))
