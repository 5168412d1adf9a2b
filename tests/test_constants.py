"""What a graph computes from its own tensors alone is computed once, and nothing else is."""

import pytest
import torch
from torch import fx, nn

from featx.runtime.constants import compute_constants

aten = torch.ops.aten


def graph_of(build) -> fx.GraphModule:
    """The graph that `build` makes of a function to add calls, the input and a weight."""
    root = nn.Module()
    root.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    graph.output(build(graph.call_function, x, weight))
    return fx.GraphModule(root, graph)


def operations(module: fx.GraphModule) -> list[str]:
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def doubled_and_added(call, x, weight):
    table = call(aten.view.default, (call(aten.mul.Tensor, (weight, 2.0)), [2, 2]))
    return call(aten.add.Tensor, (table, x))


def written_to_by_a_view(call, x, weight):
    table = call(aten.mul.Tensor, (weight, 2.0))
    call(aten.add_.Tensor, (call(aten.view.default, (table, [2, 2])), x))
    return table


def weight_written_to(call, x, weight):
    call(aten.add_.Tensor, (call(aten.view.default, (weight, [2, 2])), x))
    return call(aten.mul.Tensor, (weight, 2.0))


def drawn_at_random(call, x, weight):
    return call(aten.add.Tensor, (call(aten.view.default, (call(aten.bernoulli.default, (weight,)), [2, 2])), x))


X = torch.ones(2, 2)


def test_what_follows_from_weights_is_computed_once():
    module = graph_of(doubled_and_added)
    expected = module(X)
    compute_constants(module)
    assert operations(module) == ["add.Tensor"]
    assert torch.equal(module(X), expected)


@pytest.mark.parametrize("build", [written_to_by_a_view, weight_written_to, drawn_at_random])
def test_what_is_written_to_and_what_is_random_stays_an_operation(build):
    module = graph_of(build)
    before = operations(module)
    compute_constants(module)
    assert operations(module) == before


def test_a_result_that_is_written_to_is_the_same_every_time():
    module = graph_of(written_to_by_a_view)
    compute_constants(module)
    assert torch.equal(module(X), module(X))
