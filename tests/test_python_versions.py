"""What some of the Pythons the package runs on get wrong, and sources therefore leave alone."""

import ast
from collections.abc import Iterator

import pytest

from .helpers.paths import ROOT

SOURCES = [path for folder in ROOT.iterdir() if (folder / "__init__.py").is_file() for path in folder.rglob("*.py")]
SOURCES += [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")]

INLINED = (ast.ListComp, ast.SetComp, ast.DictComp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp, ast.ClassDef)


def taken_twice(source: str) -> list[str]:
    """Names that one comprehension of a function binds, and another takes from outside of the function.

    Python 3.12 to 3.12.3 looks for the latter among the function's own names (python/cpython#118513), and where an
    outer function has it, so do later ones (python/cpython#156664): UnboundLocalError.
    """
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)]
    return [name for function in functions for name in _taken_twice(function)]


def _taken_twice(function: ast.AST) -> set[str]:
    own = list(_own(function))
    inlined = [node for node in own if isinstance(node, INLINED)]
    local = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    local |= {node.target.id for node in ast.walk(function) if isinstance(node, ast.NamedExpr)}
    local |= {node.id for node in own if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound = set().union(*(_bound(node) for each in inlined for node in ast.walk(each) if isinstance(node, INLINED)))
    return set().union(*map(_taken, inlined)) & bound - local


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, but not in a function or a comprehension inside of it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*FUNCTIONS, *INLINED)):
            yield from _own(child)


def _taken(node: ast.AST, hidden: frozenset[str] = frozenset()) -> set[str]:
    """Names that a comprehension takes from outside of it."""
    if isinstance(node, ast.Name):
        return {node.id} - hidden
    hidden |= _bound(node) if isinstance(node, INLINED) else set()
    inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, FUNCTIONS)]
    return set().union(*(_taken(child, hidden) for child in inner))


def _bound(node: ast.ListComp | ast.SetComp | ast.DictComp) -> set[str]:
    targets = [each.target for each in node.generators]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("a = [type for type in xs]; return [type(x) for x in xs]", ["type"]),
        ("a = [x for x, type in xs]; return {x: 1 for x in xs if type(x)}", ["type"]),
        ("a = [kind for kind in xs]; return [type(x) for x in xs]", []),
        ("a = [type for type in xs]; return [type for type in xs]", []),
        ("type = 1; a = [type for type in xs]; return [type for x in xs]", []),
        ("a = [xs for xs in xs]; return [xs for x in 'ab']", []),
    ],
)
def test_such_names_are_found(body: str, names: list[str]) -> None:
    assert taken_twice(f"def f(xs): {body}") == names


def test_no_comprehension_takes_what_another_binds() -> None:
    assert len(SOURCES) > 150
    found = {str(path): names for path in SOURCES if (names := taken_twice(path.read_text(encoding="utf-8")))}
    assert not found
