"""Rewrites a captured graph onto packed layers, with activations and residual sums in the kernels."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from .constants import constant
from .nodes import arguments_of, base_of, is_call, only_user, written_in
from .overwrite import overwrite
from .packed import (
    Activation,
    Convolving,
    Packed,
    PackedConv,
    PackedConvAdd,
    PackedConvAddTo,
    PackedLinear,
    PackedLinearAdd,
    Window,
)
from .product import OnPixels, Product, ProductAdd, is_product, is_small
from .simplify import same_shape, simplify

aten = torch.ops.aten
ACTIVATIONS: dict[Any, Callable[..., Activation]] = {
    aten.relu: lambda: Activation("relu"),
    aten.relu_: lambda: Activation("relu"),
    aten.relu6: lambda: Activation("hardtanh", (0.0, 6.0)),
    aten.relu6_: lambda: Activation("hardtanh", (0.0, 6.0)),
    aten.hardtanh: lambda low=-1.0, high=1.0: Activation("hardtanh", (float(low), float(high))),
    aten.hardtanh_: lambda low=-1.0, high=1.0: Activation("hardtanh", (float(low), float(high))),
    aten.silu: lambda: Activation("swish"),
    aten.silu_: lambda: Activation("swish"),
    aten.hardswish: lambda: Activation("hardswish"),
    aten.hardswish_: lambda: Activation("hardswish"),
    aten.sigmoid: lambda: Activation("sigmoid"),
    aten.sigmoid_: lambda: Activation("sigmoid"),
    aten.hardsigmoid: lambda: Activation("hardsigmoid"),
    aten.hardsigmoid_: lambda: Activation("hardsigmoid"),
    aten.tanh: lambda: Activation("tanh"),
    aten.tanh_: lambda: Activation("tanh"),
    aten.gelu: lambda approximate="none": Activation("gelu", (), approximate),
}
SUMS = (aten.add, aten.add_)


def fuse(module: fx.GraphModule, exact: Mapping[str, Tensor], images: int | None) -> None:
    """Do so with every convolution and linear layer whose weights are fixed, in place.

    exact: biases by name that have more precision than the graph's own; kernels add them in float32 in any case.
    images: how many will be run at once, in channels_last; convolutions of single pixels become products of matrices
        where that is faster for so many, and nowhere if None.
    """
    _restore_biases(module, exact)
    simplify(module)
    for node in list(module.graph.nodes):
        if is_call(node, aten.conv2d):
            _pack_conv(module, node, images)
        elif is_call(node, aten.linear):
            _pack_linear(module, node)
    overwrite(module)
    _clean(module)


def _restore_biases(module: fx.GraphModule, exact: Mapping[str, Tensor]) -> None:
    """Give layers that are going to be packed their exact biases; no other operation takes two precisions."""
    for node in module.graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name in exact and all(_packs_with(user, node) for user in node.users):
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, nn.Parameter(exact[name], requires_grad=False))


def _packs_with(layer: fx.Node, bias: fx.Node) -> bool:
    """Whether `layer` is one that will be packed, and this its bias."""
    if not is_call(layer, aten.conv2d) and not is_call(layer, aten.linear):
        return False
    x, weight, its, *moves = arguments_of(layer).values()
    return its is bias and x is not bias and _fixed(weight, bias) and (not moves or _window(moves) is not None)


def _pack_conv(module: fx.GraphModule, node: fx.Node, images: int | None) -> None:
    x, weight, bias, *moves = arguments_of(node).values()
    window = _window(moves)
    if window is None or not _fixed(weight, bias):
        return
    added = _sum_after(node, x)
    last = node if added is None else added[0]
    act, after = _activation_after(last, x)
    tensors = weights, _ = _tensors(module, weight, bias)
    pixels = None if images is None else images * prod(_shape(x)[2:])
    small = pixels is not None and is_product(weights, act, window) and is_small(weights, act, pixels)
    if added is None:
        kind, inputs, replaced = (Product if small else PackedConv), (x,), [node, *after]
    else:
        other = added[1]
        fused = PackedConvAddTo if _is_free(other, x, module) else PackedConvAdd
        kind, inputs, replaced = (ProductAdd if small else fused), (x, other), [node, last, *after]
    _put(module, kind(*tensors, act, _shape(x), window), inputs, replaced)


def _pack_linear(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias = arguments_of(node).values()
    if not _fixed(weight, bias):
        return
    added = _sum_after(node, x)
    if added is not None:
        layer: Packed = PackedLinearAdd(*_tensors(module, weight, bias), Activation(), _shape(x))
        _put(module, layer, (x, added[1]), [node, added[0]])
        return
    act, after = _activation_after(node, x)
    _put(module, PackedLinear(*_tensors(module, weight, bias), act, _shape(x)), (x,), [node, *after])


def _put(module: fx.GraphModule, layer: Packed, inputs: tuple[fx.Node, ...], replaced: list[fx.Node]) -> None:
    """Let the layer do what the nodes did, one after another, where the last of them is."""
    name = f"packed_{len(module._modules)}"
    module.add_module(name, layer.eval())
    last = replaced[-1]
    with module.graph.inserting_before(last):
        new = module.graph.call_module(name, inputs)
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    for node in reversed(replaced):
        module.graph.erase_node(node)


def _activation_after(node: fx.Node, x: fx.Node) -> tuple[Activation, list[fx.Node]]:
    """The activation that alone reads the node's result, and its node; none of either if there is none."""
    user = only_user(node)
    make = None if user is None else ACTIVATIONS.get(getattr(user.target, "overloadpacket", None))
    if user is None or make is None or _changed_between(x, node, user):
        return Activation(), []
    return make(*user.args[1:], **user.kwargs), [user]


def _sum_after(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The sum that alone reads the convolution's result, and the other summand, if that has the same shape."""
    user = only_user(node)
    if user is None or not any(is_call(user, kind) for kind in SUMS) or len(user.args) != 2 or user.kwargs:
        return None
    first, second = user.args
    other = second if first is node else first
    if not isinstance(other, fx.Node) or other is node or not same_shape(other, node):
        return None
    changes_other = is_call(user, aten.add_) and first is other
    if (changes_other and (len(other.users) > 1 or base_of(other) is not other)) or _changed_between(x, node, user):
        return None
    return user, other


def _is_free(other: fx.Node, x: fx.Node, module: fx.GraphModule) -> bool:
    """Whether the memory of `other` is fresh from a convolution, and nothing but the sum reads it."""
    packed = other.op == "call_module" and isinstance(module.get_submodule(str(other.target)), Convolving | OnPixels)
    return (packed or is_call(other, aten.conv2d)) and len(other.users) == 1 and base_of(x) is not other


def _changed_between(x: fx.Node, start: fx.Node, end: fx.Node) -> bool:
    """Whether something writes to `x` between the two nodes: what reads it must then not move from one to the other."""
    node, base = start.next, base_of(x)
    while node is not end:
        if any(base_of(written) is base for written in written_in(node)):
            return True
        node = node.next
    return False


def _clean(module: fx.GraphModule) -> None:
    """Forget weights that have been packed."""
    for node in reversed(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    used = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    for path in [path for path, _ in (*module.named_parameters(), *module.named_buffers())]:
        owner, _, name = path.rpartition(".")
        if path not in used:
            delattr(module.get_submodule(owner), name)
    module.delete_all_unused_submodules()


def _window(moves: list[Any]) -> Window | None:
    """The stride, padding, dilation and groups of a convolution; None if the padding is a word or they are no ints."""
    stride, padding, dilation, groups = moves
    if isinstance(padding, str):
        return None
    pairs = [tuple(value) if isinstance(value, list | tuple) else (value,) for value in (padding, stride, dilation)]
    padded, strided, dilated = (pair * 2 if len(pair) == 1 else pair for pair in pairs)
    return Window(padded, strided, dilated, groups)


def _fixed(weight: Any, bias: Any) -> bool:
    return all(part is None or (isinstance(part, fx.Node) and part.op == "get_attr") for part in (weight, bias))


def _tensors(module: fx.GraphModule, weight: fx.Node, bias: fx.Node | None) -> tuple[Tensor, Tensor | None]:
    return constant(module, weight), None if bias is None else constant(module, bias)


def _shape(x: fx.Node) -> tuple[int, ...]:
    """The shape that `x` had when it was captured."""
    return tuple(side if isinstance(side, int) else side.node.hint for side in x.meta["val"].shape)
