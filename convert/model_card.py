"""The YAML block at the top of a README.md."""

from typing import Any

import yaml

from ..checkpoint.folder import Checkpoint
from ..errors import InvalidInput
from .chat_template import read_text

MAX_CARD = 4 << 20
MAX_BLOCK = 64 << 10  # YAML parses 100 KB a second; real cards have 1 to 10
MAX_BRACKETS = 1000  # open ones take quadratic time
NULL = "tag:yaml.org,2002:null"


class _TextLoader(yaml.SafeLoader):
    """Every scalar is text, but for an empty one: `no` is Norwegian here, not false, and `1.0` a version."""


_TextLoader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag == NULL])
}


def read_model_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """The block's entries; empty without a README.md or without a block. Raises InvalidInput when it is not YAML."""
    path = checkpoint.file("README.md")
    if path is None:
        return {}
    lines = read_text(path, MAX_CARD).split("\n")
    if lines[0] != "---" or "---" not in lines[1:]:
        return {}
    block = "\n".join(lines[1 : lines.index("---", 1)]).replace("\t", "  ")
    if len(block) > MAX_BLOCK:
        raise InvalidInput(f"{path}: its YAML block has {len(block)} characters; {MAX_BLOCK} is the most it may have")
    if block.count("[") + block.count("{") > MAX_BRACKETS:
        raise InvalidInput(f"{path}: its YAML block has more than {MAX_BRACKETS} brackets")
    try:
        card = yaml.load(block, _TextLoader)
    except RecursionError:
        raise InvalidInput(f"{path}: its YAML block is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{path}: its YAML block cannot be read: {' '.join(str(error).split())[:200]}") from None
    return card if isinstance(card, dict) else {}
