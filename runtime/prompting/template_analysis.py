"""Which chat templates print the texts of messages as they are, so that one rendering tells both prompt and origin."""

from jinja2 import nodes

FUNCTIONS = ("raise_exception", "strftime_now")
TESTS = ("string", "mapping", "iterable", "sequence", "defined", "undefined", "none")
TEXT_OPERATIONS = (nodes.Add, nodes.And, nodes.Or)
PLAIN_NODES = (nodes.TemplateData, nodes.Const, nodes.Name, nodes.CondExpr, nodes.Not, nodes.Slice)
FIXED_KEYS = ("role", "type", "index", "index0", "first", "last")
"""Keys of messages, parts and `loop` whose values are never the text of a message."""


def prints_texts_unchanged(template: nodes.Template) -> bool:
    """Whether the template at most trims and joins texts of messages, and decides nothing by what they say.

    False also for what this simple analysis does not know. An empty text is one that a template can tell from others.
    """
    lookups = [node for node in template.find_all((nodes.Getattr, nodes.Getitem)) if _key(node) is not None]
    looked_into = {id(node.node) for node in lookups}
    return all(_is_harmless(node, looked_into) for node in template.find_all(nodes.Expr))


def _is_harmless(node: nodes.Expr, looked_into: set[int]) -> bool:
    if isinstance(node, nodes.Call):
        return getattr(node.node, "name", None) in FUNCTIONS and all(isinstance(arg, nodes.Const) for arg in node.args)
    if isinstance(node, nodes.Filter):
        return node.name == "trim" and not (node.args or node.kwargs)
    if isinstance(node, nodes.Test):
        return node.name in TESTS
    if isinstance(node, nodes.Compare):
        return _is_fixed(node)
    if isinstance(node, nodes.BinExpr):
        return isinstance(node, TEXT_OPERATIONS) or _is_fixed(node)
    if isinstance(node, (nodes.Getattr, nodes.Getitem)):  # a number picks a message or a part, or else a character
        return _key(node) is not None or id(node) in looked_into or getattr(node.node, "name", None) == "messages"
    return isinstance(node, PLAIN_NODES)


def _is_fixed(node: nodes.Node) -> bool:
    """Whether the value of `node` is the same whatever the messages say."""
    if isinstance(node, nodes.Compare):
        return _is_fixed(node.expr) and all(_is_fixed(operand.expr) for operand in node.ops)
    if isinstance(node, nodes.BinExpr):
        return _is_fixed(node.left) and _is_fixed(node.right)
    return isinstance(node, nodes.Const) or _key(node) in FIXED_KEYS


def _key(node: nodes.Node) -> str | None:
    """The name that a lookup has: `x` of `a.x` and `a["x"]`."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    key = node.arg if isinstance(node, nodes.Getitem) else None
    return key.value if isinstance(key, nodes.Const) and isinstance(key.value, str) else None
