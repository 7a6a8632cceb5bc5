"""Paths of somebody's computer, which have no place in a file that is published."""

import re

PATH_START = re.compile(
    r"""\s*(?:
        /                                # /home/kari/model, //server/share
      | ~[\w.-]*(?:[\\/]|$)              # ~/model, ~kari/model
      | \.{1,2}(?:[\\/]|$)               # ./model, ..\model
      | [a-z]:[\\/]                      # C:\model
      | \\                               # \\server\share
      | file:                            # file:///home/kari/model
      | \$\{?\w+\}?[\\/] | %\w+%[\\/]    # $HOME/model, %USERPROFILE%\model
    )""",
    re.VERBOSE | re.IGNORECASE,
)
PATH_INSIDE = re.compile(
    r"""(?:^|[\s"'`(\[<=,;:])(?:
        /(?:home|users|root|mnt|media|data|scratch|work|workspace|content|kaggle|tmp|var|opt|srv|cluster|lustre|gpfs)/
      | ~/ | [a-z]:\\ | file:/ | \$HOME\b | %USERPROFILE%
    )""",
    re.VERBOSE | re.IGNORECASE,
)
URL = re.compile(r"(?:(?!file:)[a-z][a-z0-9+.-]+://|(?:www|huggingface|hf)\.)\S*", re.IGNORECASE)


def is_local_path(text: str) -> bool:
    """Whether `text` is, or mentions, a path in a local file system; a URL or a relative name is none."""
    return not URL.fullmatch(text) and bool(PATH_START.match(text) or PATH_INSIDE.search(text))


def is_local_model(name: str) -> bool:
    """The same for the name of a model or data set: also `run/out/checkpoint-5`, since a Hub id has one slash."""
    return is_local_path(name) or (not URL.fullmatch(name) and ("\\" in name or name.rstrip("/").count("/") > 1))
