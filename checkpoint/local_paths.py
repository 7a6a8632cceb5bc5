"""Recognizes paths of a local file system, which are kept out of metadata that is published."""

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
"""Folders at the top of a file system in which people and clusters keep models."""
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
    """Whether `text` is, or mentions, a path in a local file system; a URL or a relative name is none."""
    return not URL.fullmatch(text) and bool(PATH_START.match(text) or PATH_INSIDE.search(text))


def is_local_model(name: str) -> bool:
    """The same for the name of a model or data set: also `run/out/checkpoint-5`, since a Hub id has one slash."""
    return is_local_path(name) or (not URL.fullmatch(name) and ("\\" in name or name.rstrip("/").count("/") > 1))


def last_part(path: str) -> str:
    """The name of the file or folder at the end of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
