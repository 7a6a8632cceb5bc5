"""Downloads checkpoints from the Hugging Face Hub with huggingface_hub, into its cache."""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...errors import InvalidInput
from ..adapter_folder import CONFIG, AdapterFolder, find_adapter
from ..file_access import quote, shown
from .errors import REDACTED, WEB, ask, redact
from .retry import with_retries
from .verify import verify

SCHEMES = ("hf://", WEB, "huggingface.co/", "hf.co/")
EXAMPLE = "NbAiLab/borealis-4b"
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]*[A-Za-z0-9_])?")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A file name without wildcards or separators, which is safe to use as a pattern."""
MAX_ID = 96

WANTED = (
    "config.json",
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
    "model*.safetensors",  # not "consolidated.safetensors", which holds the same weights
    "model.safetensors.index.json",
)
PREFIXES = ("model*", "tokenizer*", "chat_template*", "LICENSE*", "additional_chat_templates/*")
# a pattern's * matches separators too, so files in deeper folders are excluded
UNWANTED = ("*..*", "*:*", "/*", *(prefix + separator for prefix in PREFIXES for separator in ("/*", "\\*")))

Progress = Callable[[int, int], None]
"""`on_progress(done, total)` in bytes; `total` grows while files are listed, and again for verification."""


def parse_id(text: str) -> tuple[str | None, str | None]:
    """Returns ("org/name", revision or None), or (None, None) for text that can only be a path."""
    scheme = next((scheme for scheme in SCHEMES if text.startswith(scheme)), "")
    repo_id, _, revision = text.removeprefix(scheme).partition("@")
    problem = _id_problem(repo_id, revision if "@" in text else None)
    if problem is None:
        return repo_id, revision or None
    if scheme or (repo_id.count("/") == 1 and not repo_id.startswith((".", "~", "/")) and "\\" not in repo_id):
        missing = "" if scheme else "no such file or folder, and "
        raise InvalidInput(redact(f"{shown(text)}: {missing}not a Hub id: {problem}"))
    return None, None


def _id_problem(repo_id: str, revision: str | None) -> str | None:
    """Returns the Hub's naming rule that an id or revision breaks, or None."""
    parts = repo_id.split("/")
    if len(parts) != 2:
        return f"it has the form {EXAMPLE}"
    if len(repo_id) > MAX_ID:
        return f"{len(repo_id)} characters; {MAX_ID} is the most"
    if not all(NAME.fullmatch(part) for part in parts):
        return "names have letters, digits, '-', '_' and '.', and neither begin nor end with '-' or '.'"
    if "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".ipynb")):
        return "no name has '--' or '..' in it, or ends in .git or .ipynb"
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        return f"{quote(revision)} is not a revision"
    return None


def download(repo_id: str, revision: str | None, on_progress: Progress | None) -> Path:
    """Downloads missing or changed files of a checkpoint, verifies them (see `verify`), and returns their folder.

    Raises BorealisError for a file with a wrong digest, InvalidInput for other errors, never with the token in the
    text; a BorealisError raised by `on_progress` stops the download.
    """
    check_id(repo_id, revision)
    path = _fetch(repo_id, revision, on_progress, list(WANTED))
    if (problem := missing(repo_id, [file.name for file in path.iterdir()], path)) is not None:
        raise InvalidInput(problem)
    return path


def download_files(
    repo_id: str, revision: str | None, choose: Callable[[list[str]], list[str]], on_progress: Progress | None
) -> list[Path]:
    """Downloads the files that `choose` picks from a repository's file names, and returns their paths in its order.

    `choose` is given only file names without folders. Raises like `download`.
    """
    from huggingface_hub import HfApi

    check_id(repo_id, revision)
    # list_repo_files makes five attempts of its own, and says so each time
    info = with_retries(
        repo_id,
        lambda: ask(lambda: HfApi().model_info(repo_id, revision=revision or "main"), repo_id, revision),
        attempts=3,
    )
    names = [file.rfilename for file in info.siblings or ()]
    chosen = choose(sorted(name for name in names if PLAIN.fullmatch(name) and ".." not in name))
    folder = _fetch(repo_id, revision, on_progress, chosen)
    return [folder / name for name in chosen]


def _fetch(repo_id: str, revision: str | None, on_progress: Progress | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    fetched = (0, 0)

    def fetching(done: int, total: int) -> None:
        nonlocal fetched
        fetched = (done, total)
        if on_progress:
            on_progress(done, total)

    def verifying(done: int, total: int) -> None:
        if on_progress:
            on_progress(fetched[0] + done, fetched[1] + total)

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(REDACTED)
    wanted: Any = {"allow_patterns": patterns, "ignore_patterns": list(UNWANTED)}
    folder = with_retries(
        repo_id,
        lambda: ask(
            lambda: snapshot_download(repo_id, revision=revision, tqdm_class=_reporter(fetching), **wanted),
            repo_id,
            revision,
            kept=", what was downloaded is kept",
        ),
        attempts=3,  # huggingface_hub retries some errors itself
    )
    names = sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())
    verify(repo_id, Path(folder), list(filter_repo_objects(names, **wanted)), verifying)
    return Path(folder)


def check_id(repo_id: str, revision: str | None) -> None:
    """Raises InvalidInput for an id or revision that the Hub does not allow."""
    problem = _id_problem(repo_id, revision)
    if problem is not None:
        raise InvalidInput(f"{repo_id}: {redact(problem)}")


def missing(repo_id: str, names: Iterable[str], folder: Path | None = None) -> str | None:
    """Returns an error message if a repository of these files is no checkpoint; `folder` holds them once downloaded."""
    names = set(names)
    if CONFIG in names and not any(fnmatch(name, "model*.safetensors") for name in names):
        return f"{repo_id}: {_adapter_advice(repo_id, find_adapter(folder) if folder else None)}"
    if "config.json" not in names:
        return f"{repo_id}: holds no config.json, so no checkpoint (look at {WEB}{repo_id}/tree/main)"
    if not any(name.endswith(".safetensors") for name in names):
        return f"{repo_id}: holds no model*.safetensors; only such checkpoints can be converted"
    return None


def _adapter_advice(repo_id: str, adapter: AdapterFolder | None) -> str:
    """Describes an adapter's repository, with the commands that download and use the adapter."""
    folder = repo_id.rpartition("/")[2]
    local = replace(adapter or AdapterFolder(Path(), "LORA", None), path=Path(folder))
    return f"{local.what}, not a model: hf download {repo_id} --local-dir {folder}, then {local.advice}"


def _reporter(on_progress: Progress | None) -> type[Any]:
    """Returns a silent tqdm class that reports bytes; huggingface_hub also makes bars that count files."""
    from tqdm import tqdm

    lock = threading.Lock()
    bars: list[Any] = []

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            if kwargs.get("unit") == "B":
                bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                self.n += n or 0
                if on_progress is not None and any(bar is self for bar in bars):
                    done = max(int(bar.n) for bar in bars)
                    on_progress(done, max(done, *(int(bar.total or 0) for bar in bars)))
            return None

    return Reporter
