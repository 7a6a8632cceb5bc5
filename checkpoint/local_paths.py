"""Recognizes local file system paths, so that they are left out of published metadata."""

import re

PATH_START = re.compile(
    r"""\s*(?:
        /                                # /home/kari/model, //server/share
      | ~[\w.-]*(?:[\\/]|$)              # ~/model, ~kari/model
      | \.{1,2}(?:[\\/]|$)               # ./model, ..\model
      | [a-z]:[\\/]                      # C:\model
      | \\                               # \\server\share
      | file:                            # file:///home/kari/model
      | (?:smb|nfs|afp)://               # smb://server/share/model
      | \$\{?\w+\}?[\\/] | %\w+%[\\/]    # $HOME/model, %USERPROFILE%\model
    )""",
    re.VERBOSE | re.IGNORECASE,
)
ROOTS = (
    "ceph|cluster|content|data|dbfs|efs|fp|fsx|gpfs|home|kaggle|lustre|media|mnt|net|nfs|opt|pfs|private|proj|projappl|"
    "projects?|root|scratch|shared|srv|storage|teamspace|tmp|users|usit|var|volumes|work|workspace"
)
"""Top-level folders in which people and clusters keep models."""
PATH_INSIDE = re.compile(
    rf"""(?<![\w/\\.~-])(?:
        /(?:{ROOTS})/
      | ~/ | [a-z]:[\\/](?!/) | \\\\\w | file:/
      | \$\{{?[A-Z_]{{2,}}\b\}}?[\\/] | \$env: | \$HOME\b | %[A-Z]{{2,}}%
    )""",
    re.VERBOSE | re.IGNORECASE,
)
URL = re.compile(r"(?!(?:file|smb|nfs|afp):)(?:[a-z][a-z0-9+.-]+://|(?:www|huggingface|hf)\.)\S*", re.IGNORECASE)


def is_local_path(text: str) -> bool:
    """Whether `text` is or contains a local file system path; URLs and relative names do not count."""
    return not URL.fullmatch(text) and bool(PATH_START.match(text) or PATH_INSIDE.search(text))


def is_local_model(name: str) -> bool:
    """Whether the name of a model or data set is a local path, also `run/out/checkpoint-5`: a Hub id has one slash."""
    return is_local_path(name) or (not URL.fullmatch(name) and ("\\" in name or name.rstrip("/").count("/") > 1))


def last_part(path: str) -> str:
    """Returns the last component of a Windows or POSIX path."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
