"""Names in facebookresearch/ConvNeXt, its successor ConvNeXt-V2, and the files of others that are built on them.

The encoder that V2 pretrains under masks computes with MinkowskiEngine, which wraps layers and flattens kernels.
DINOv3 and EUPE list their last norm twice, or bring the projectors of distillation along.
"""

import re
from collections.abc import Collection
from math import isqrt

from torch import Tensor

from ..layout import Layout, has
from ..names import Rule, renamed
from ..state import State, StateDict

TO_NATIVE: tuple[Rule, ...] = (
    (r"^encoder\.", ""),
    (r"\.(?:ln|linear)\.(weight|bias)$", r".\1"),
    (r"\.kernel$", ".weight"),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
FROM_NATIVE: tuple[Rule, ...] = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    """Small variants, which have two blocks in their first stage, mix channels by 1x1 convolutions here."""
    dense = {name: dense_kernel(tensor) if name.endswith(".kernel") else tensor for name, tensor in state.items()}
    pointwise = not has(r"(encoder\.)?stages\.0\.2\.")(state)
    return {name: shaped(name, tensor, pointwise) for name, tensor in renamed(dense, TO_NATIVE).items()}


def dense_kernel(kernel: Tensor) -> Tensor:
    """A flat kernel, (area, in_chs, chs) or depthwise (area, chs), as (chs, in_chs or 1, side, side).

    The flat index runs down the columns of the window.
    """
    side = isqrt(kernel.shape[0]) if kernel.ndim in (2, 3) else 0
    if not side or side * side != kernel.shape[0]:
        return kernel  # which fits no model
    flat = kernel.permute(2, 1, 0) if kernel.ndim == 3 else kernel.T.unsqueeze(1)
    return flat.unflatten(-1, (side, side)).transpose(-1, -2).contiguous()


def shaped(name: str, tensor: Tensor, pointwise: bool) -> Tensor:
    """Norms and biases come with leading axes of one cell."""
    if name.endswith(".bias") or ".grn." in name:
        return tensor.flatten()
    if pointwise and re.search(r"\.mlp\.fc[12]\.weight$", name):
        return tensor[..., None, None]
    return tensor


def from_native(state: State) -> StateDict:
    return {name: unshaped(name, tensor) for name, tensor in renamed(state, FROM_NATIVE).items()}


def unshaped(name: str, tensor: Tensor) -> Tensor:
    if ".grn." in name:
        return tensor.view(1, 1, 1, -1)
    return tensor.flatten(1) if re.search(r"\.pwconv[12]\.weight$", name) else tensor


LAYOUTS = (
    Layout(
        "facebook",
        "ConvNeXt",
        has(
            r"(encoder\.)?downsample_layers\.0\.0\.weight$",
            r"(encoder\.)?stages\.0\.0\.dwconv\.(weight|kernel)$",
            r"(encoder\.)?stages\.0\.0\.norm\.(ln\.)?weight$",
            r"(encoder\.)?stages\.0\.0\.pwconv1\.(linear\.)?weight$",
        ),
        to_native,
        from_native,
        ignores={
            r"mask_token$|(proj|decoder|pred)\.": "decoder of masked pretraining",
            r"norms\.": "norms of intermediate maps, and the last norm once more",
            r"projectors\.": "projectors of distillation",
        },
    ),
)
