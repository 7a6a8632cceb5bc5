"""The public names: what type checkers see of them is what programs get."""

import ast

import borealis_gguf

from .helpers.paths import ROOT


def test_names_for_type_checkers_are_those_of_run_time() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert typed == borealis_gguf.MODULES
    assert [name for name in typed if not hasattr(borealis_gguf, name)] == []
    assert dir(borealis_gguf) == sorted(typed)
