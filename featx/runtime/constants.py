"""What a graph computes from weights alone, computed once: resized position grids, standardised weights."""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx


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
    known: dict[fx.Node, Any] = {
        node: attrgetter(str(node.target))(module) for node in module.graph.nodes if node.op == "get_attr"
    }
    for node in _from(set(known), module.graph):
        known[node] = _run(node, known)
    made = [node for node in known if node.op == "call_function" and isinstance(known[node], Tensor)]
    for number, node in enumerate(node for node in made if any(user not in known for user in node.users)):
        name = f"constant_{number}"
        module.register_buffer(name, known[node].contiguous())
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _from(weights: set[fx.Node], graph: fx.Graph) -> Iterator[fx.Node]:
    """The operations that read those tensors and nothing else; none that write."""
    constant = set(weights)
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes):
            schema = getattr(node.target, "_schema", None)
            if schema is not None and not schema.is_mutable and not _written(node):
                constant.add(node)
                yield node


def _written(node: fx.Node) -> bool:
    """Whether an operation writes into what the node returned."""
    schemas = [getattr(user.target, "_schema", None) for user in node.users]
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _computes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and all(argument.alias_info is None for argument in schema.arguments)


def _run(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    arguments, named = fx.map_arg((node.args, dict(node.kwargs)), lambda given: known[given])
    target: Any = node.target
    return target(*arguments, **named)
