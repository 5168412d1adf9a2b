"""What a graph computes from weights alone, computed once: resized position grids, standardised weights."""

from collections.abc import Iterator
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from .nodes import base_of, written_in


def has_constants(program: Any) -> bool:
    """Whether an ExportedProgram computes anything from weights alone, beside views of them.

    Other libraries may compute it otherwise (OpenVINO's antialiased resizing differs by 1 %), or in every call.
    """
    given = set(program.graph_signature.user_inputs)
    weights = {node for node in program.graph.nodes if node.op == "placeholder" and node.name not in given}
    return any(_computes(node) for node in _from(weights, program.graph))


@torch.no_grad()
def compute_constants(module: fx.GraphModule) -> None:
    """Put what a graph computes from its own tensors alone in the place of the operations that compute it, in place."""
    known: dict[fx.Node, Any] = {node: constant(module, node) for node in module.graph.nodes if node.op == "get_attr"}
    for node in _from(set(known), module.graph):
        known[node] = _run(node, known)
    made = [node for node in known if node.op == "call_function" and isinstance(known[node], Tensor)]
    for node in [node for node in made if any(user not in known for user in node.users)]:
        new = constant_node(module, node, known[node].contiguous())
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _from(weights: set[fx.Node], graph: fx.Graph) -> Iterator[fx.Node]:
    """The operations that read those tensors and nothing else; none that write, or whose result is written to."""
    written = {base_of(node) for user in graph.nodes for node in written_in(user)}
    fixed = weights - written
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and fixed.issuperset(node.all_input_nodes):
            schema = getattr(node.target, "_schema", None)
            repeats = schema is not None and not schema.is_mutable and not _is_random(node)
            if repeats and base_of(node) not in written:
                fixed.add(node)
                yield node


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _computes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and all(argument.alias_info is None for argument in schema.arguments)


def _run(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    arguments, named = fx.map_arg((node.args, dict(node.kwargs)), lambda given: known[given])
    target: Any = node.target
    return target(*arguments, **named)


def constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node stands for."""
    return attrgetter(str(node.target))(module).detach()


def constant_node(module: fx.GraphModule, before: fx.Node, value: Tensor) -> fx.Node:
    """A node, in front of another, for a tensor that the module then has."""
    name = next(name for name in map("constant_{}".format, count()) if not hasattr(module, name))
    module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)
