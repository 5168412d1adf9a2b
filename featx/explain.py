"""Attribution maps (N, h, w) from attention and from gradients.

Attention and its gradients come from `featx.capture_attention`. `grid` is (height, width) in patches: the last
height * width tokens are the patches in row-major order, those before them are prefix tokens. No map is normalized.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError, ContractError, InputError
from .level_module import level_module
from .tracing.copies import structural_copy

Grid = tuple[int, int]
REGISTRIES = ("_parameters", "_buffers")  # attributes of a module whose tensors its copy shares

# A class index for all images, one per image, or a function from the model's output to one value per image.
Target = int | Tensor | Callable[[Any], Tensor]


def attention_rollout(maps: Mapping[str, Tensor] | Iterable[Tensor], grid: Grid, query: int | None = 0) -> Tensor:
    """Attention rollout (https://arxiv.org/abs/2005.00928): how much each patch contributes to a token.

    Heads are averaged, each block's matrix is averaged with the identity for its shortcut, and the matrices of all
    blocks are multiplied.

    Args:
        maps: the maps of all blocks in running order, (N, heads, tokens, tokens) each, such as `seen.maps`.
        grid: (height, width) in patches.
        query: index of the token, 0 for a class token; None for the mean over the patches.

    Returns:
        (N, h, w) in [0, 1], with a sum of at most 1.

    Raises:
        InputError: the maps have other shapes.
    """
    blocks = list(maps.values() if isinstance(maps, Mapping) else maps)
    shapes = {tuple(map_.shape) for map_ in blocks}
    if len(shapes) != 1 or any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
        raise InputError(f"expected maps (N, heads, tokens, tokens) of one shape from all blocks, got {sorted(shapes)}")
    first, *others = [_with_shortcut(map_) for map_ in blocks]
    rolled = first
    for step in others:
        rolled = step @ rolled
    return patches_of(rolled, grid, query)


def class_attention(map_: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """One block's attention from a token to the patches, averaged over heads.

    For one map per head, as in https://arxiv.org/abs/2104.14294, call `patches_of` on the map itself.

    Args:
        map_: (N, heads, queries, keys).
        grid: (height, width) in patches.
        query: index of the token, 0 for a class token; None for the mean over the patches.

    Returns:
        (N, h, w) in [0, 1], with a sum of at most 1.

    Raises:
        InputError: the map has another shape.
    """
    _require_heads(map_)
    return patches_of(map_.mean(1), grid, query)


def attention_gradcam(map_: Tensor, gradient: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """Attention weighted by its positive gradient, map · relu(gradient), averaged over heads.

    ALBEF (https://arxiv.org/abs/2107.07651) and BLIP compute it this way.

    Args:
        map_: (N, heads, queries, keys), from `capture_attention(..., gradients=True)`.
        gradient: the gradient of the same shape, after `backward`.
        grid: (height, width) in patches.
        query: index of the token, 0 for a class token; None for the mean over the patches.

    Returns:
        (N, h, w), 0 or more.

    Raises:
        InputError: the map or the gradient has another shape.
    """
    _require_heads(map_)
    if map_.shape != gradient.shape:
        raise InputError(f"map {tuple(map_.shape)} and gradient {tuple(gradient.shape)} are not of one block and run")
    return patches_of((map_ * gradient.relu()).mean(1), grid, query)


def gradcam(model: nn.Module, images: Tensor, level: str, target: Target) -> Tensor:
    """Grad-CAM (https://arxiv.org/abs/1610.02391): the regions of a map that increase the target.

    The map's channels are weighted by the means of their gradients and summed, followed by ReLU. Maps (N, h, w, chs)
    and tokens are converted to (N, chs, h, w), without prefix tokens.

    Thread-safe: one forward pass runs on a copy of the model that shares its tensors, in the model's current mode, also
    under `no_grad` and with frozen parameters. The model and its gradients do not change.

    Args:
        model: the model.
        images: (N, in_chans, H, W).
        level: name of a level in the `feature_info` of the model's extractor, or path of a module that returns a map.
        target: a class index for all images, an int64 tensor (N,) of class indices, or a function from the model's
            output to one value per image or a single value.

    Returns:
        (N, h, w), 0 or more, one value per cell of the map.

    Raises:
        ArgumentError: the level or the target does not exist.
        ContractError: the module's output is not such a map, or the target does not depend on it.
    """
    output_module = level_module(model, level)
    copied = structural_copy(model, keep=_caches(model))
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: object, output: Any) -> Any:
        del inputs
        value = output_module.value(output)
        kept.append(value if value.requires_grad else value.detach().requires_grad_())
        return output_module.replaced(output, kept[-1].clone())  # a clone, since the model may modify it in place

    copied.get_submodule(output_module.path).register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():
        value = _value(copied(images.clone() if images.is_inference() else images), target)
    if len(kept) != 1:
        raise ContractError(f"{level} ran {len(kept)} times in one forward, expected once")
    (gradient,) = torch.autograd.grad(value, kept, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        raise ContractError(f"the target does not depend on the output of {level}")
    layout, size = output_module.layout(model, kept[0], images), (images.shape[2], images.shape[3])
    weights = layout.split(gradient, size, level)[1].mean((2, 3), keepdim=True)  # (N, chs, 1, 1)
    return (weights * layout.split(kept[0].detach(), size, level)[1]).sum(1).relu()


def _caches(model: nn.Module) -> list[dict[str, Any]]:
    """Dictionaries of tensors that modules cached from parameters, which a copy must share."""
    values = [value for module in model.modules() for name, value in vars(module).items() if name not in REGISTRIES]
    return [value for value in values if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())]


def patches_of(x: Tensor, grid: Grid, query: int | None = 0) -> Tensor:
    """One token's attention to the patches as a grid: (..., queries, keys) to (..., h, w).

    Args:
        x: an attention map, or its gradient.
        grid: (height, width) in patches.
        query: index of the token; None for the mean over the rows of the patches.

    Raises:
        ArgumentError: there is no token `query`.
        InputError: there are fewer keys than patches.
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
    """(N, heads, tokens, tokens) to (N, tokens, tokens): the mean of the attention and the identity (shortcut)."""
    attention = map_.mean(1)
    return (attention + torch.eye(map_.shape[-1], device=map_.device, dtype=map_.dtype)) / 2


def _require_heads(map_: Tensor) -> None:
    if map_.ndim != 4:
        raise InputError(f"expected a map (N, heads, queries, keys), got shape {tuple(map_.shape)}")


def _value(output: Any, target: Target) -> Tensor:
    """The scalar to differentiate: the sum over images, each of which depends on its own map only."""
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
