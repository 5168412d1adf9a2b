"""Questions about the nodes of a captured graph."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
MAY_VIEW = (aten.reshape, aten.contiguous, aten.to, aten.flatten)


def is_call(node: fx.Node, packet: Any) -> bool:
    """Whether the node calls an operation, in any of its forms."""
    return getattr(node.target, "overloadpacket", None) is packet


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, with the defaults of those not given."""
    arguments = getattr(node.target, "_schema").arguments  # noqa: B009
    defaults = {argument.name: argument.default_value for argument in arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def written_in(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose memory a call writes to."""
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if writes and isinstance(value, fx.Node):
            yield value
    if node.op == "call_module" and len(node.args) == 2 and isinstance(node.args[1], fx.Node):
        yield node.args[1]  # a packed sum may write over its other summand


def base_of(node: fx.Node) -> fx.Node:
    """The node that made the memory which the node's result is in."""
    while True:
        schema = getattr(node.target, "_schema", None)
        aliases = [a.alias_info is not None for a in schema.arguments] if schema is not None else []
        maybe = any(is_call(node, kind) for kind in MAY_VIEW) or node.target is operator.getitem
        place = 0 if maybe else (aliases.index(True) if True in aliases else None)
        before = None if place is None or place >= len(node.args) else node.args[place]
        if not isinstance(before, fx.Node):
            return node
        node = before
