"""`capture_attention`: the attention maps of a forward pass, and their gradients.

Hooks act only in the thread that installed them, and are left out of copies of their module.
"""

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from .blocks import AttentionBlock, Blocks, CaptureKind, select_blocks
from .weight_trace import AttentionWeights, WeightTrace

TABLES = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_hooks_lock = threading.Lock()


@dataclass(slots=True, weakref_slot=True, eq=False)
class Attention:
    """The captured attention of the chosen blocks by name, in running order, from the last run of each block.

    Attributes:
        maps: weights (B, heads, queries, keys) after the softmax and before dropout, detached. Rows sum to 1.
        gradients: gradients with respect to the weights, in the same shape; empty without `gradients=True`.
        positions: pixels per patch that are side by side in the batch: 4 in MobileViT, 1 elsewhere.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def grid(self, name: str, size: tuple[int, int]) -> Tensor:
        """The map of a block with its keys as a grid of cells: (N, heads, queries, h, w).

        Prefix tokens are removed from the keys and kept among the queries. In MobileViT, which attends to each pixel of
        a patch separately, cells are patches and queries are all pixels of the map in row-major order; a pixel attends
        to the pixels at its position in every patch.

        Args:
            name: the name of the block.
            size: (height, width) of the grid in cells.

        Raises:
            InputError: the keys do not form such a grid.
        """
        map_, positions = self.maps[name], self.positions[name]
        height, width = size
        if map_.shape[-1] < height * width or map_.shape[0] % positions:
            raise InputError(
                f"{name} has {map_.shape[-1]} keys, which do not form a grid of {height}x{width}: pass the (h, w) of "
                "the map that its block returns"
            )
        map_ = map_[..., map_.shape[-1] - height * width :].unflatten(-1, size)
        return map_ if positions == 1 else _pixels(map_, positions)

    def _keep(self, name: str, weights: AttentionWeights, gradients: bool) -> None:
        self.maps[name] = weights.values
        self.gradients.pop(name, None)
        if gradients:
            weights.source.register_hook(_gradient_hook(weakref.ref(self), name, weights))


@contextmanager
def capture_attention(
    model: nn.Module, blocks: Blocks | None = None, *, gradients: bool = False
) -> Iterator[Attention]:
    """Context manager that captures the attention maps of the chosen blocks in every forward pass of `model`.

    The model's outputs do not change, bit for bit. Weights that a fused kernel does not return are computed in
    addition, in float32 or higher precision. A map holds the weights of https://arxiv.org/abs/1706.03762: computed from
    the kernel's inputs, or the output of the softmax that the module multiplies its values with. Shapes: Swin
    (N * windows, heads, tokens of a window, tokens of a window), with an image's windows in row-major order; MobileViT
    (N * pixels of a patch, heads, patches, patches); MobileViTv2 the scores of its keys
    (N, 1, pixels of a patch, patches).

    Thread-safe: only forward passes in the thread that entered the context are captured, and other threads may run the
    model at the same time. All hooks are removed at the end.

    Args:
        model: a model or an extractor, native or from timm, transformers or torchvision.
        blocks: indices and names of blocks; negative indices count from the model's last block with attention. None
            captures all.
        gradients: also capture the gradients of the maps during a backward pass. If no parameter requires gradients,
            the graph starts at the first captured map.

    Raises:
        ArgumentError: a block does not exist; or a forward pass with `gradients=True` runs without autograd.
        ContractError: the model has no attention that can be captured, or the weights of a module cannot be proven.
    """
    selected = select_blocks(model, blocks)
    if gradients and (asked := [block.path for block in selected if block.kind is CaptureKind.ASKED]):
        raise ArgumentError(f"gradients=True: {asked} are nn.MultiheadAttention, of which only maps can be had")
    attention = Attention(positions={block.name: block.positions for block in selected})
    with ExitStack() as hooks:
        for block in selected:
            _capture_block(hooks, block, attention, gradients)
        yield attention


def _capture_block(hooks: ExitStack, block: AttentionBlock, attention: Attention, gradients: bool) -> None:
    if block.kind is CaptureKind.ASKED:
        hooks.callback(install(block.module, _request_hook(block, attention), with_kwargs=True))
        return
    hooks.callback(_Observer(block, attention, gradients).stop)


class _Observer:
    """Traces every forward pass of one module."""

    def __init__(self, block: AttentionBlock, attention: Attention, gradients: bool) -> None:
        self.block, self.attention, self.gradients = block, attention, gradients
        self.traces: list[WeightTrace] = []
        self.thread, self.stopped = threading.get_ident(), False
        self.remove = install(block.module, self.end, self.begin, always_call=True)

    def begin(self, *_: Any) -> None:
        if self.gradients and not torch.is_grad_enabled():
            raise ArgumentError(
                f"gradients=True, but {self.block.path} runs without autograd: leave torch.no_grad and inference_mode, "
                "and use non-reentrant checkpointing (use_reentrant=False)"
            )
        trace = WeightTrace(self.block.kind is CaptureKind.SEPARABLE, self.gradients)
        trace.__enter__()
        self.traces.append(trace)

    def end(self, _: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        if not self.traces:  # `begin` raised
            return
        trace = self.traces.pop()
        trace.__exit__(None, None, None)
        if self.stopped:
            self.stop()
        elif output is not None and not _in_backward():  # None: it failed; backward: checkpointing recomputes it
            self.attention._keep(self.block.name, _single(self.block, trace), self.gradients)

    def stop(self) -> None:
        """Stop tracing, also an interrupted forward pass. One that runs in another thread is stopped when it ends."""
        self.stopped = True
        if self.traces and threading.get_ident() != self.thread:
            return
        while self.traces:
            self.traces.pop().__exit__(None, None, None)
        self.remove()


def _single(block: AttentionBlock, trace: WeightTrace) -> AttentionWeights:
    """The single map that was proven. ContractError if there is not exactly one."""
    shapes = [tuple(weights.values.shape) for weights in trace.proven]
    if len(shapes) != 1 or len(shapes[0]) != 4 or not trace.unchanged():
        raise ContractError(
            f"{type(block.module).__name__} at {block.path}: expected to see one tensor of weights (B, heads, queries, "
            f"keys) multiply the values, saw {shapes or 'none'}; leave it out of `blocks`"
        )
    return trace.proven[0]


def _gradient_hook(ref: "weakref.ref[Attention]", name: str, weights: AttentionWeights) -> Callable[[Tensor], None]:
    """A hook that stores the gradient if its map is still stored. Weak references: the graph keeps neither alive."""
    map_, to_gradient = weakref.ref(weights.values), weights.to_gradient

    def keep(gradient: Tensor) -> None:
        attention = ref()
        if attention is not None and attention.maps.get(name) is map_():
            kept = {**attention.gradients, name: to_gradient(gradient)}
            attention.gradients.clear()  # backward visits the blocks in reverse: restore the order of the maps
            attention.gradients.update((block, kept[block]) for block in attention.maps if block in kept)

    return keep


def _request_hook(block: AttentionBlock, attention: Attention) -> Callable[..., None]:
    """A hook that runs nn.MultiheadAttention again with `need_weights=True`, and checks that its output is the same."""

    def request(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if _in_backward():  # checkpointing recomputes it
            return
        twin: Any = copy.copy(module)
        twin.training = False
        with torch.no_grad():
            repeated, weights = twin.forward(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
        dropped = module.training and getattr(module, "dropout", 0.0) > 0
        if not dropped and not torch.allclose(repeated.float(), output[0].float(), rtol=1e-2, atol=_slack(repeated)):
            raise ContractError(f"the weights of {block.path} do not give its output: leave it out of `blocks`")
        if weights.ndim != 4:
            raise ContractError(f"{block.path} takes {args[0].ndim}-dimensional queries: add the batch axis")
        attention.maps[block.name] = weights

    return request


def _slack(x: Tensor) -> float:
    """Absolute tolerance for rounding errors of a sum of products, from the largest value."""
    return 64 * torch.finfo(x.dtype).eps * x.abs().max().item()


def _pixels(map_: Tensor, positions: int) -> Tensor:
    """(N * positions, heads, cells, h, w) to (N, heads, pixels, h, w), with pixels in row-major order over the map."""
    side, (height, width) = isqrt(positions), map_.shape[-2:]
    map_ = map_.unflatten(0, (-1, side, side)).unflatten(4, (height, width))  # (N, i, j, heads, row, column, h, w)
    return map_.permute(0, 3, 4, 1, 5, 2, 6, 7).flatten(2, 5)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class ThreadHook:
    """Calls `hook` only in the thread that created this object, and not while a forward pass is traced or compiled.

    Other threads have their own inputs and their own stack of modes. A traced graph would outlive the hook.
    """

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook, self._thread = hook, threading.get_ident()

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return
        if threading.get_ident() == self._thread:
            self._hook(*args)


def install(
    module: nn.Module, after: Callable[..., None], before: Callable[..., None] | None = None, **options: bool
) -> Callable[[], None]:
    """Hook this thread's calls of `module`.

    Args:
        module: the module.
        after: the forward hook.
        before: the forward pre-hook, if any.
        options: keyword arguments of `register_forward_hook`, for `after`.

    Returns:
        A function that removes the hooks. It may be called several times.
    """
    with _hooks_lock:
        handles = [module.register_forward_hook(ThreadHook(after), **options)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(ThreadHook(before)))
        vars(module)["__reduce_ex__"] = partial(_reduce_without_hooks, module)  # used by copy and pickle

    def remove() -> None:
        with _hooks_lock:
            for handle in handles:
                handle.remove()
            if not _thread_hooks(module):
                vars(module).pop("__reduce_ex__", None)

    return remove


def _thread_hooks(module: nn.Module) -> set[int]:
    """Ids of the module's hooks that are a ThreadHook."""
    hooks = [*module._forward_hooks.items(), *module._forward_pre_hooks.items()]
    return {number for number, hook in hooks if isinstance(hook, ThreadHook)}


def _reduce_without_hooks(module: nn.Module, protocol: Any) -> Any:
    """The state that copies and pickles are made from: the module without its ThreadHooks."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    make, args, state, *others = reduced
    own = _thread_hooks(module)
    kept = {name: value for name, value in state.items() if name != "__reduce_ex__"}
    kept |= {name: OrderedDict((n, v) for n, v in [*state[name].items()] if n not in own) for name in TABLES}
    return make, args, kept, *others
