"""capture_attention: the attention maps of a forward pass, and their gradients.

Hooks are those of the thread that made them, and copies of their module are made without them.
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
from .blocks import Block, Blocks, Kind, chosen
from .weight_trace import Watch, Weights

TABLES = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_changing = threading.Lock()


@dataclass(slots=True, weakref_slot=True, eq=False)
class Attention:
    """What was seen of the chosen blocks, by their names in running order, each as it was when its block last ran.

    maps: weights (B, heads, queries, keys) after the softmax and before dropout; rows sum to 1. Detached.
    gradients: of what `backward` was called on by the weights, in the same shape; empty without `gradients=True`.
    positions: pixels of a patch that stand beside each other in the batch: 4 in MobileViT, 1 elsewhere.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def grid(self, name: str, size: tuple[int, int]) -> Tensor:
        """The map of a block with its keys as a grid of `size` (height, width) cells: (N, heads, queries, h, w).

        Prefix tokens are left out of the keys and stay among the queries. Where a MobileViT attends to each pixel of
        its patches by itself, the cells are its patches, and the queries all pixels of its map, in rows: the keys of a
        pixel are those at its place in every patch. Raises InputError if the tokens are no such grid.
        """
        map_, positions = self.maps[name], self.positions[name]
        height, width = size
        if map_.shape[-1] < height * width or map_.shape[0] % positions:
            raise InputError(
                f"{name} has {map_.shape[-1]} keys, which are no grid of {height}x{width}: pass the cells of the map "
                "that its block puts out"
            )
        map_ = map_[..., map_.shape[-1] - height * width :].unflatten(-1, size)
        return map_ if positions == 1 else _pixels(map_, positions)

    def _keep(self, name: str, weights: Weights, gradients: bool) -> None:
        self.maps[name] = weights.values
        self.gradients.pop(name, None)
        if gradients:
            weights.source.register_hook(_keeper(weakref.ref(self), name, weights))


@contextmanager
def capture_attention(
    model: nn.Module, blocks: Blocks | None = None, *, gradients: bool = False
) -> Iterator[Attention]:
    """Within the block, every forward of `model` leaves the attention maps of the chosen blocks in what this gives.

    model: a model or an extractor, native or of timm, transformers or torchvision.
    blocks: numbers and names, see `Attention.maps`; negative numbers count from the last block with attention that the
        model has. None captures all.
    gradients: keep, during a backward pass, the gradients of the maps too. Where no parameter wants gradients, the
        graph then begins at the first captured map.

    The model computes what it always computes, bit for bit; weights that a fused kernel does not write down are
    computed beside it, in float32 or more. A map is the weights of https://arxiv.org/abs/1706.03762: what goes into the
    kernel, or the result of the softmax by which the module multiplies its values. Swin's are (N * windows, heads,
    tokens of a window, tokens of a window), windows in rows within each image; MobileViT's (N * pixels of a patch,
    heads, patches, patches); MobileViTv2's the scores of its keys, (N, 1, pixels of a patch, patches).

    Only forwards in the thread that opened the block are captured; other threads may run the model meanwhile. Nothing
    is installed outside the block.

    Raises ArgumentError for blocks that do not exist, ContractError for a model without attention that can be captured
    or a module whose weights cannot be proven, and ArgumentError in a forward without autograd when gradients are asked
    for.
    """
    found = chosen(model, blocks)
    if gradients and (asked := [block.path for block in found if block.kind is Kind.ASKED]):
        raise ArgumentError(f"gradients=True: {asked} are nn.MultiheadAttention, of which only maps can be had")
    seen = Attention(positions={block.name: block.positions for block in found})
    with ExitStack() as hooks:
        for block in found:
            _install(hooks, block, seen, gradients)
        yield seen


def _install(hooks: ExitStack, block: Block, seen: Attention, gradients: bool) -> None:
    if block.kind is Kind.ASKED:
        hooks.callback(install(block.module, _asker(block, seen), with_kwargs=True))
        return
    hooks.callback(_Observer(block, seen, gradients).stop)


class _Observer:
    """Watches every forward of one module."""

    def __init__(self, block: Block, seen: Attention, gradients: bool) -> None:
        self.block, self.seen, self.gradients = block, seen, gradients
        self.watches: list[Watch] = []
        self.thread, self.stopped = threading.get_ident(), False
        self.remove = install(block.module, self.end, self.begin, always_call=True)

    def begin(self, *_: Any) -> None:
        if self.gradients and not torch.is_grad_enabled():
            raise ArgumentError(
                f"gradients=True, but {self.block.path} runs without autograd: leave torch.no_grad and inference_mode, "
                "and use non-reentrant checkpointing (use_reentrant=False)"
            )
        watch = Watch(self.block.kind is Kind.SEPARABLE, self.gradients)
        watch.__enter__()
        self.watches.append(watch)

    def end(self, _: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        if not self.watches:  # `begin` refused
            return
        watch = self.watches.pop()
        watch.__exit__(None, None, None)
        if self.stopped:
            self.stop()
        elif output is not None and not _in_backward():  # it failed, or checkpointing runs it once more
            self.seen._keep(self.block.name, _single(self.block, watch), self.gradients)

    def stop(self) -> None:
        """Stop watching, also a forward that was interrupted; one that runs in another thread is left to end first."""
        self.stopped = True
        if self.watches and threading.get_ident() != self.thread:
            return
        while self.watches:
            self.watches.pop().__exit__(None, None, None)
        self.remove()


def _single(block: Block, watch: Watch) -> Weights:
    """The one map that was proven; ContractError otherwise."""
    shapes = [tuple(weights.values.shape) for weights in watch.proven]
    if len(shapes) != 1 or len(shapes[0]) != 4 or not watch.unchanged():
        raise ContractError(
            f"{type(block.module).__name__} at {block.path}: expected to see one tensor of weights (B, heads, queries, "
            f"keys) multiply the values, saw {shapes or 'none'}; leave it out of `blocks`"
        )
    return watch.proven[0]


def _keeper(ref: "weakref.ref[Attention]", name: str, weights: Weights) -> Callable[[Tensor], None]:
    """A hook that keeps the gradient if its map is still the one that is kept; the graph keeps neither alive."""
    map_, to_gradient = weakref.ref(weights.values), weights.to_gradient

    def keep(gradient: Tensor) -> None:
        seen = ref()
        if seen is not None and seen.maps.get(name) is map_():
            kept = {**seen.gradients, name: to_gradient(gradient)}
            seen.gradients.clear()  # backward meets the blocks in reverse: back to the order of the maps
            seen.gradients.update((block, kept[block]) for block in seen.maps if block in kept)

    return keep


def _asker(block: Block, seen: Attention) -> Callable[..., None]:
    """A hook that asks nn.MultiheadAttention for its weights, and holds what it returns with them to what it did."""

    def ask(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if _in_backward():  # checkpointing runs it once more
            return
        twin: Any = copy.copy(module)
        twin.training = False
        with torch.no_grad():
            again, weights = twin.forward(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
        dropped = module.training and getattr(module, "dropout", 0.0) > 0
        if not dropped and not torch.allclose(again.float(), output[0].float(), rtol=1e-2, atol=_slack(again)):
            raise ContractError(f"the weights of {block.path} do not give its output: leave it out of `blocks`")
        if weights.ndim != 4:
            raise ContractError(f"{block.path} takes {args[0].ndim}-dimensional queries: add the batch axis")
        seen.maps[block.name] = weights

    return ask


def _slack(x: Tensor) -> float:
    """Rounding error of a sum of products, relative to the largest value."""
    return 64 * torch.finfo(x.dtype).eps * x.abs().max().item()


def _pixels(map_: Tensor, positions: int) -> Tensor:
    """(N * positions, heads, cells, h, w) to (N, heads, pixels, h, w), pixels in rows over the whole map."""
    side, (height, width) = isqrt(positions), map_.shape[-2:]
    map_ = map_.unflatten(0, (-1, side, side)).unflatten(4, (height, width))  # (N, i, j, heads, row, column, h, w)
    return map_.permute(0, 3, 4, 1, 5, 2, 6, 7).flatten(2, 5)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class ThreadHook:
    """Calls `hook` in the thread that made this alone, and not where a forward is traced or compiled.

    Another thread has its own images, and its own stack of modes; a graph that held the hook would outlive it.
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
    """Hook this thread's calls of `module`; returns what removes the hooks, as often as it is called.

    options: of `register_forward_hook`, for `after`.
    """
    with _changing:
        handles = [module.register_forward_hook(ThreadHook(after), **options)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(ThreadHook(before)))
        vars(module)["__reduce_ex__"] = partial(_reduced, module)  # where copy and pickle look for it

    def remove() -> None:
        with _changing:
            for handle in handles:
                handle.remove()
            if not _own(module):
                vars(module).pop("__reduce_ex__", None)

    return remove


def _own(module: nn.Module) -> set[int]:
    """The hooks of this kind that the module has, by their numbers."""
    hooks = [*module._forward_hooks.items(), *module._forward_pre_hooks.items()]
    return {number for number, hook in hooks if isinstance(hook, ThreadHook)}


def _reduced(module: nn.Module, protocol: Any) -> Any:
    """What copies and pickles are made of: the module without hooks of this kind."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    make, args, state, *others = reduced
    own = _own(module)
    kept = {name: value for name, value in state.items() if name != "__reduce_ex__"}
    kept |= {name: OrderedDict((n, v) for n, v in [*state[name].items()] if n not in own) for name in TABLES}
    return make, args, kept, *others
