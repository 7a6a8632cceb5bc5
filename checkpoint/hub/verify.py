"""Verifies files in the Hub's cache by the digest that the Hub gives for each of them.

huggingface_hub compares lengths: a download that broke off and went on with other bytes leaves a file of the right
length under its final name. So each file is hashed before it is believed, whoever fetched it, and once: the note of
that holds its size, time of modification and inode, and counts for as long as the file has them.
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
"""SHA-1 of a small file as git has it, with its header; SHA-256 of a large one, which git has only a pointer to."""

BLOCK = 4 << 20

log = logging.getLogger("borealis_gguf")


def verify(repo_id: str, folder: Path, names: Sequence[str], on_progress: Callable[[int, int], None] | None) -> None:
    """Hash those of the files `names` of a snapshot in the Hub's cache that were not hashed before as they are now.

    `on_progress(done, total)` counts the bytes of these. Raises BorealisError when some are other files than the Hub
    has; these are then removed from the cache.
    """
    folder = extended(folder)
    note = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    known = read_note(NOTES, note)
    stamps = {name: _stamp(folder / name) for name in names}
    unknown = [name for name in names if known.get(name) != stamps[name]]
    if not unknown:
        return
    done, total = 0, sum(stamps[name][0] for name in unknown)

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress:
            on_progress(done, total)

    digests = _digests_of_commit(repo_id, folder.name)
    unverifiable: list[str] = []
    bad: list[str] = []
    try:
        for name in unknown:
            expected = digests.get(name) or _digest_in_link(folder / name)
            if expected is None:
                unverifiable.append(name)
            elif _digest(folder / name, expected, step) == expected:
                known[name] = stamps[name]
            else:
                bad.append(name)
    finally:
        write_note(NOTES, note, known)
    if unverifiable:
        log.warning("%s: the Hub cannot be asked now whether these are its files: %s", folder, _listed(unverifiable))
    if bad:
        raise _removed(repo_id, folder, bad)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _digests_of_commit(repo_id: str, commit: str) -> dict[str, str]:
    """The digest of every file of a commit; nothing where the Hub does not answer."""
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
    """The digest that the Hub gave when the file was fetched: a snapshot links to files named after their ETags."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if DIGEST.fullmatch(name) else None


def _digest(path: Path, expected: str, step: Callable[[int], None]) -> str:
    """The digest of a file, of the kind that `expected` is."""
    file, size = open_regular(path)
    large = len(expected) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file:
        while block := file.read(BLOCK):
            digest.update(block)
            step(len(block))
    return digest.hexdigest()


def _removed(repo_id: str, folder: Path, names: Sequence[str]) -> BorealisError:
    """Remove files from the cache. The error to raise says which, and what to do."""
    what = f"{repo_id}: {_listed(names)}: other bytes than the Hub has under this name"
    try:
        for name in names:
            _remove(folder / name, folder.parents[2])
    except OSError as error:
        return BorealisError(f"{what}; remove {error.filename} ({error.strerror}), then run again")
    return BorealisError(f"{what}; removed from the cache, so run again to fetch it anew")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")


def _remove(path: Path, cache: Path) -> None:
    """Remove a file and, link by link, what it stands for, as far as that lies in the Hub's cache."""
    while path.is_relative_to(cache):
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = Path(os.path.normpath(target))
