"""Rewrites a captured graph so that layers stand right before what their kernels can do: nothing between, and nothing
computed in every forward that depends on weights alone.
"""

import torch
from torch import Tensor, fx

from .constants import compute_constants, constant, constant_node
from .nodes import arguments_of, base_of, is_call, only_user

aten = torch.ops.aten
CHECKS = (aten._assert_tensor_metadata.default,)
POINTWISE = (aten.relu, aten.silu, aten.gelu, aten.hardswish, aten.sigmoid, aten.hardsigmoid, aten.tanh, aten.hardtanh)
POINTWISE += (aten.relu6, aten.relu_, aten.silu_, aten.hardswish_, aten.hardtanh_, aten.relu6_)
LAYERS = (aten.conv2d, aten.linear)


def simplify(module: fx.GraphModule) -> None:
    """Do so, in place; the graph has to be recompiled afterwards."""
    _drop_checks(module)
    compute_constants(module)
    for node in list(module.graph.nodes):
        if any(is_call(node, kind) for kind in POINTWISE):
            _before_views(node)
        elif is_call(node, aten.mul):
            _scale_weights(module, node)
        elif is_call(node, aten.add):
            _add_before_permute(node)


def _drop_checks(module: fx.GraphModule) -> None:
    """Take out checks; let views copy where the kernels order memory otherwise than PyTorch's own would have."""
    for node in list(module.graph.nodes):
        if node.target in CHECKS and not node.users:
            module.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default


def _before_views(act: fx.Node) -> None:
    """An activation of a view becomes the view of an activation, as far up as nothing else reads what is viewed."""
    in_place = getattr(act.target, "_schema").is_mutable  # noqa: B009
    view = act.args[0]
    while isinstance(view, fx.Node) and _is_view(view) and len(view.users) == 1:
        source = view.args[0]
        if not isinstance(source, fx.Node) or len(source.users) != 1 or (in_place and base_of(source) is not source):
            return
        act.replace_all_uses_with(view)
        view.args = (act, *view.args[1:])
        act.args = (source, *act.args[1:])
        view.prepend(act)
        view.meta, act.meta = {**view.meta, "val": act.meta["val"]}, {**act.meta, "val": source.meta["val"]}
        view = source


def _is_view(node: fx.Node) -> bool:
    return is_call(node, aten.permute) or is_call(node, aten.reshape) or is_call(node, aten.transpose)


def _scale_weights(module: fx.GraphModule, mul: fx.Node) -> None:
    """A product of what a layer returns with a constant per channel becomes the product of its weights with it."""
    first, second = mul.args
    x, factor = (second, first) if isinstance(first, fx.Node) and first.op == "get_attr" else (first, second)
    if not isinstance(x, fx.Node) or not isinstance(factor, fx.Node) or factor.op != "get_attr":
        return
    scale = constant(module, factor)
    permuted, layer = _permuted_layer(x)
    if layer is None or scale.ndim > (rank := layer.meta["val"].ndim):
        return
    scale = scale[(None,) * (rank - scale.ndim)]
    if permuted is not None:
        scale = scale.permute(_inverse(permuted))
    axis = 1 if is_call(layer, aten.conv2d) else rank - 1
    per_channel = tuple(layer.meta["val"].shape[axis] if i == axis else 1 for i in range(rank))
    weight, bias = arguments_of(layer)["weight"], arguments_of(layer)["bias"]
    constants = all(part is None or part.op == "get_attr" for part in (weight, bias))
    if tuple(scale.shape) != per_channel or not constants or scale.dtype != layer.meta["val"].dtype:
        return
    scale = scale.flatten()
    weights = constant(module, weight)
    scaled = [weights * scale.view(-1, *[1] * (weights.ndim - 1))]
    if bias is not None:
        scaled.append(constant(module, bias) * scale)
    layer.args = (
        layer.args[0],
        *(constant_node(module, layer, part) for part in scaled),
        *layer.args[len(scaled) + 1 :],
    )
    mul.replace_all_uses_with(x)
    mul.graph.erase_node(mul)


def _add_before_permute(add: fx.Node) -> None:
    """A sum with a permuted result of a linear layer becomes the permuted sum, which the layer's kernel can do."""
    for place in (0, 1) if len(add.args) == 2 and not add.kwargs else ():
        x, other = add.args[place], add.args[1 - place]
        if not isinstance(x, fx.Node) or not isinstance(other, fx.Node) or x is other:
            continue
        permuted, layer = _permuted_layer(x)
        if layer is None or permuted is None or not is_call(layer, aten.linear) or not same_shape(x, other):
            continue
        with add.graph.inserting_before(add):
            back = add.graph.call_function(aten.permute.default, (other, _inverse(permuted)))
            total = add.graph.call_function(aten.add.Tensor, (layer, back))
            again = add.graph.call_function(aten.permute.default, (total, list(permuted)))
        back.meta = {"val": other.meta["val"].permute(_inverse(permuted))}
        total.meta, again.meta = dict(layer.meta), dict(add.meta)
        add.replace_all_uses_with(again)
        add.graph.erase_node(add)
        x.graph.erase_node(x)
        return


def _permuted_layer(x: fx.Node) -> tuple[list[int] | None, fx.Node | None]:
    """The layer that alone makes `x`, and how its result is permuted on the way, None if it is not."""
    permuted = None
    if is_call(x, aten.permute) and len(x.users) == 1:
        source, axes = x.args[0], x.args[1]
        assert isinstance(source, fx.Node)
        assert isinstance(axes, list | tuple)
        permuted, x = [int(axis) % len(axes) for axis in axes if isinstance(axis, int)], source
    is_layer = any(is_call(x, kind) for kind in LAYERS) and only_user(x) is not None
    return (permuted, x) if is_layer else (None, None)


def _inverse(axes: list[int]) -> list[int]:
    return [axes.index(axis) for axis in range(len(axes))]


def same_shape(one: fx.Node, other: fx.Node) -> bool:
    """Whether the results of the nodes have one shape and one dtype, whatever the batch."""
    a, b = one.meta.get("val"), other.meta.get("val")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    return [str(side) for side in a.shape] == [str(side) for side in b.shape]
