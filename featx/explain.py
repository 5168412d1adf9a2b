"""What a model looked at: maps (N, h, w) from attention and from gradients.

Attention and its gradients come from `featx.capture_attention`. `grid` is (height, width) of the patches, of any
aspect: the last height * width tokens are the patches in rows, those before them prefix tokens. Nothing is normalised.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError, ContractError, InputError
from .level_module import level_module
from .tracing.copies import structural_copy

Grid = tuple[int, int]
REGISTRIES = ("_parameters", "_buffers")  # of a module, whose tensors a copy shares anyway

# A logit for all images, one for each, or a function of what the model returns to one number per image.
Target = int | Tensor | Callable[[Any], Tensor]


def attention_rollout(maps: Mapping[str, Tensor] | Iterable[Tensor], grid: Grid, query: int | None = 0) -> Tensor:
    """How much each patch reaches a token through all blocks: (N, h, w) in [0, 1], with a sum of at most 1.

    Attention rollout (https://arxiv.org/abs/2005.00928): heads averaged, half of each block passes its input on, and
    the blocks multiplied.

    maps: of all blocks in running order, (N, heads, tokens, tokens) each, such as `seen.maps`.
    query: the token, 0 for a class token; None for the mean over the patches. InputError for maps of other shapes.
    """
    given = list(maps.values() if isinstance(maps, Mapping) else maps)
    shapes = {tuple(map_.shape) for map_ in given}
    if len(shapes) != 1 or any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
        raise InputError(f"expected maps (N, heads, tokens, tokens) of one shape from all blocks, got {sorted(shapes)}")
    first, *others = [_with_shortcut(map_) for map_ in given]
    rolled = first
    for step in others:
        rolled = step @ rolled
    return patches_of(rolled, grid, query)


def class_attention(map_: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """How one block's token attends to the patches, mean over heads: (N, h, w) in [0, 1], with a sum of at most 1.

    map_: (N, heads, queries, keys). query: the token, 0 for a class token; None for the mean over the patches. For a
    map per head, as in https://arxiv.org/abs/2104.14294, use `patches_of` on the map itself.
    """
    _require_heads(map_)
    return patches_of(map_.mean(1), grid, query)


def attention_gradcam(map_: Tensor, gradient: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """Attention that speaks for the target, map · relu(gradient), mean over heads: (N, h, w), 0 or more.

    As ALBEF (https://arxiv.org/abs/2107.07651) and BLIP do. map_, gradient: (N, heads, queries, keys), from
    `capture_attention(..., gradients=True)` after `backward`. query: as in `class_attention`.
    """
    _require_heads(map_)
    if map_.shape != gradient.shape:
        raise InputError(f"map {tuple(map_.shape)} and gradient {tuple(gradient.shape)} are not of one block and run")
    return patches_of((map_ * gradient.relu()).mean(1), grid, query)


def gradcam(model: nn.Module, images: Tensor, level: str, target: Target) -> Tensor:
    """Where a map speaks for the target: (N, h, w), 0 or more, in the map's cells.

    Grad-CAM (https://arxiv.org/abs/1610.02391): the channels of the map, each by the mean of its gradient, added, and
    what is negative cut off. The axes of the module's output do not matter: maps (N, h, w, chs) and tokens are turned
    to (N, chs, h, w), and prefix tokens are left out.

    level: name of a level in the `feature_info` of the model's extractor, or the path of any module that returns a map.
    target: a logit's number for all images, a tensor (N,) of numbers, or a function from what the model returns to one
        value per image or one in all.

    It runs a copy of the model, which shares all tensors with it, once in the mode it is in, also under no_grad and
    with frozen parameters; the model and the gradients of its parameters stay as they are, so that other threads can
    call it meanwhile. Raises ArgumentError for a path or target that does not exist, and ContractError for an output
    that is no such map or that the target does not depend on.
    """
    found = level_module(model, level)
    copied = structural_copy(model, keep=_caches(model))
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: object, output: Any) -> Any:
        del inputs
        value = found.value(output)
        kept.append(value if value.requires_grad else value.detach().requires_grad_())
        return found.replaced(output, kept[-1].clone())  # which the model may write into

    copied.get_submodule(found.path).register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():
        value = _value(copied(images.clone() if images.is_inference() else images), target)
    if len(kept) != 1:
        raise ContractError(f"{level} ran {len(kept)} times in one forward, expected once")
    (gradient,) = torch.autograd.grad(value, kept, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        raise ContractError(f"the target does not depend on the output of {level}")
    form, size = found.form(model, kept[0], images), (images.shape[2], images.shape[3])
    weights = form.split(gradient, size, level)[1].mean((2, 3), keepdim=True)  # (N, chs, 1, 1)
    return (weights * form.split(kept[0].detach(), size, level)[1]).sum(1).relu()


def _caches(model: nn.Module) -> list[dict[str, Any]]:
    """Dictionaries of tensors that modules computed from parameters, which cannot be copied."""
    values = [value for module in model.modules() for name, value in vars(module).items() if name not in REGISTRIES]
    return [value for value in values if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())]


def patches_of(x: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """The row of one token, its patches as a grid: (..., queries, keys) to (..., h, w).

    query: the token's number; None for the mean over the patches' rows. InputError if there are fewer keys than cells.
    """
    height, width = grid
    cells = height * width
    if min(grid) < 1 or x.ndim < 3 or x.shape[-1] < cells:
        raise InputError(f"attention of shape {tuple(x.shape)} has no {height}x{width} patches as keys")
    if query is None:
        if x.shape[-2] < cells:
            raise InputError(f"attention of shape {tuple(x.shape)} has no {height}x{width} patches as queries")
        row = x[..., -cells:, :].mean(-2)
    elif -x.shape[-2] <= query < x.shape[-2]:
        row = x[..., query, :]
    else:
        raise ArgumentError(f"query={query}: there are {x.shape[-2]} tokens")
    return row[..., -cells:].unflatten(-1, grid)


def _with_shortcut(map_: Tensor) -> Tensor:
    """(N, heads, tokens, tokens) to (N, tokens, tokens): half attention, half the block's shortcut."""
    attention = map_.mean(1)
    return (attention + torch.eye(map_.shape[-1], device=map_.device, dtype=map_.dtype)) / 2


def _require_heads(map_: Tensor) -> None:
    if map_.ndim != 4:
        raise InputError(f"expected a map (N, heads, queries, keys), got shape {tuple(map_.shape)}")


def _value(output: Any, target: Target) -> Tensor:
    """The number whose gradient is taken: the sum over the images, of which each depends on its own map alone."""
    if not isinstance(target, int | Tensor):
        value = target(output)
        if not isinstance(value, Tensor) or value.ndim > 1:
            raise ArgumentError("target: the function must return a tensor, one value or one per image")
        return value.sum()
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ArgumentError(
            f"target={target!r}: the model returns no logits (N, classes); pass a function of its output"
        )
    numbers = torch.as_tensor(target, device=logits.device)
    if numbers.dtype != torch.int64 or numbers.shape not in ((), logits.shape[:1]):
        raise ArgumentError(f"target={target!r}: expected one number, or one per image as int64")
    if not bool(((numbers >= 0) & (numbers < logits.shape[1])).all()):
        raise ArgumentError(f"target={target!r}: the model has classes 0 to {logits.shape[1] - 1}")
    return logits.gather(1, numbers.expand(len(logits))[:, None]).sum()
