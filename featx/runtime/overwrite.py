"""Lets sums and products in a graph be written over memory that nothing reads any more."""

from typing import Any

import torch
from torch import fx

from .nodes import base_of, is_call
from .packed import Packed
from .simplify import same_shape

aten = torch.ops.aten
IN_PLACE: dict[Any, Any] = {aten.add: aten.add_.Tensor, aten.mul: aten.mul_.Tensor}


def overwrite(module: fx.GraphModule) -> None:
    """Do so where their first operand came from a packed layer or another sum or product, in place."""
    bases = {node: base_of(node) for node in module.graph.nodes}
    last: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        last.update((bases[given], node) for given in node.all_input_nodes)
    for made, user in last.items():
        kind = getattr(user.target, "overloadpacket", None)
        if kind not in IN_PLACE or len(user.args) != 2 or user.kwargs or user.args[0] is not made:
            continue
        other = user.args[1]
        apart = not isinstance(other, fx.Node) or bases[other] is not made
        if apart and _is_fresh(made, module) and same_shape(made, user):
            user.target = IN_PLACE[kind]


def _is_fresh(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether the node's result is in memory of its own, as large as it."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), Packed)
    return any(is_call(node, kind) for kind in IN_PLACE)
