"""Opens a checkpoint on the Hub without downloading weights: fetches small files and safetensors headers only."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from threading import Event
from typing import TypeVar

from ...errors import InvalidInput
from ...temporary_folder import TemporaryFolder
from ..file_access import shown
from ..folder import SINGLE, Checkpoint, open_checkpoint
from ..quantized_checkpoint import refuse_dtypes
from ..safetensors import DTYPES, UnknownDtype, parse_header
from ..strict_json import read_json_object
from ..types import Remote, Slice
from .download import UNWANTED, WANTED, Progress, check_id, missing
from .errors import ask
from .remote import RemoteFile, locate
from .retry import with_retries

R = TypeVar("R")

COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ".safetensors"
MAX_SMALL = 256 << 20  # a tokenizer.json of 33 MB is the largest known
HEADER_BYTES = 256 << 10  # first read of a safetensors file; the header of a 4b model takes half of it
AT_ONCE = 8


def open_stream(
    repo_id: str,
    revision: str | None,
    on_progress: Progress | None = None,
    endpoint: str | None = None,
    *,
    use_card: bool = True,
) -> Checkpoint:
    """Pins a revision of a model on the Hub, and opens it as a checkpoint whose weights stay on the Hub.

    The small files that planning needs are fetched to a temporary folder named after the commit. `endpoint` is the
    Hub's address, by default HF_ENDPOINT. Raises BorealisError, never with the token in its text; an exception that
    `on_progress` raises stops the download.
    """
    check_id(repo_id, revision)
    commit, names = pin(repo_id, revision, endpoint)
    files = dict(
        zip(names, _map_parallel(lambda name, stop: find(repo_id, commit, name, endpoint, stop), names), strict=True)
    )
    small = {name: file for name, file in files.items() if not name.endswith(WEIGHTS)}
    folder = TemporaryFolder(*repo_id.split("/"), commit)
    try:
        _fetch_small_files(small, folder.path, on_progress)
        headers = _read_headers(repo_id, files, folder.path)
        return open_checkpoint(folder.path, repo_id=repo_id, remote=headers, keep=folder, use_card=use_card)
    except BaseException:
        folder.remove()  # removed here, since the traceback would keep the folder alive
        raise


def _read_headers(repo_id: str, files: dict[str, Remote], folder: Path) -> dict[str, dict[str, Slice]]:
    """Reads the headers of the safetensors among `files`, by name; `folder` holds the small files."""
    weights = [SINGLE] if SINGLE in files else [name for name in files if name.endswith(WEIGHTS)]
    try:
        headers = _map_parallel(lambda name, stop: read_remote_header(files[name], stop), weights)
        return dict(zip(weights, headers, strict=True))
    except UnknownDtype as error:
        config = read_json_object(folder / "config.json")
        refuse_dtypes(folder, error.dtypes, config, DTYPES, label=repo_id)
        raise


def pin(repo_id: str, revision: str | None, endpoint: str | None) -> tuple[str, list[str]]:
    """Returns the commit of a revision, and the names of the files that a conversion needs."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    api, timeout = HfApi(endpoint=endpoint), constants.HF_HUB_DOWNLOAD_TIMEOUT
    model = with_retries(
        f"{repo_id}: no such folder here",
        lambda: ask(lambda: api.model_info(repo_id, revision=revision or "main", timeout=timeout), repo_id, revision),
        attempts=3,
    )
    if not COMMIT.fullmatch(model.sha or ""):
        raise InvalidInput(f"{repo_id}: the Hub names no commit for it, so it cannot be pinned; leave --stream out")
    listed = [file.rfilename for file in model.siblings or ()]
    names = list(filter_repo_objects(listed, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    if (problem := missing(repo_id, names)) is not None:
        raise InvalidInput(problem)
    return model.sha or "", names


def find(repo_id: str, commit: str, name: str, endpoint: str | None, stop: Event | None = None) -> Remote:
    """Asks the Hub for size and ETag of a file at `commit`."""
    from huggingface_hub import hf_hub_url

    label = f"{repo_id}@{commit[:7]}/{shown(name)}"
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=endpoint)
    size, etag, _ = with_retries(label, lambda: locate(url, repo_id), stop)
    if size is None or etag is None:
        raise InvalidInput(f"{label}: the Hub does not tell its size and ETag; leave --stream out")
    return Remote(repo_id, label, url, size, etag)


def read_remote_header(remote: Remote, stop: Event | None = None) -> dict[str, Slice]:
    """Reads the header of a safetensors file on the Hub, with the same checks as for a local file."""
    path = Path(remote.label)
    raw = RemoteFile(remote, stop)
    with BufferedReader(raw, HEADER_BYTES) as file:
        header = parse_header(path, file, remote.size)
    pinned = replace(remote, copies=tuple(raw.etags.items()))
    return {name: replace(slice, remote=pinned) for name, slice in header.items()}


def _fetch_small_files(files: dict[str, Remote], folder: Path, on_progress: Progress | None) -> None:
    done, total = 0, sum(file.size for file in files.values())
    if total > MAX_SMALL:
        raise InvalidInput(f"{next(iter(files.values())).repo_id}: {total} bytes in files that hold no weights")
    for size in _map_parallel(lambda name, stop: _save(files[name], folder / name, stop), list(files)):
        done += size
        if on_progress:
            on_progress(done, total)


def _save(remote: Remote, path: Path, stop: Event) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with RemoteFile(remote, stop) as file:
        data = file.read(remote.size)
    return path.write_bytes(data or b"")


def _map_parallel(call: Callable[[str, Event], R], names: Sequence[str]) -> Iterator[R]:
    """Calls `call` for every name in parallel and yields results in order; sets the stop event after an error."""
    stop = Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield from pool.map(lambda name: call(name, stop), names)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
