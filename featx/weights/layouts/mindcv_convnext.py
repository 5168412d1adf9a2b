"""MindCV's names of ConvNeXt and ConvNeXt V2, as MindSpore saves them.

https://github.com/mindspore-lab/mindcv/blob/main/mindcv/models/convnext.py
"""

from collections.abc import Collection
from functools import partial

from torch import nn

from ...models.convnext import ChannelLinear
from ...models.layers.padding import SameConv2d
from ..layout import Layout, has
from ..mindspore_names import IGNORES, foreign, plain
from ..names import Rule
from ..state import State, StateDict
from .mindcv import SYSTEM, recipe

# Stem and stages take the odd places of a sequence, what lies between them the even ones.
CONVNEXT: tuple[Rule, ...] = (
    (r"^feature\.0\.", "stem."),
    (r"^feature\.([246])\.", lambda match: f"stages.{int(match[1]) // 2}.downsample."),
    (r"^feature\.([1357])\.", lambda match: f"stages.{int(match[1]) // 2}.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"^norm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.", "feature.0."),
    (r"^stages\.(\d)\.downsample\.", lambda match: f"feature.{2 * int(match[1])}."),
    (r"^stages\.(\d)\.blocks\.", lambda match: f"feature.{2 * int(match[1]) + 1}."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.", ".grn."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "classifier."),
)


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    return {name: t.flatten() if ".grn." in name else t for name, t in plain(state, CONVNEXT).items()}


def convnext_from_native(state: State) -> StateDict:
    """Linear layers, which the small networks have as 1x1 convolutions, as such, and response norms of four axes."""
    new: StateDict = {}
    for name, tensor in foreign(state, TO_CONVNEXT).items():
        if ".grn." in name:
            tensor = tensor.view(1, 1, 1, -1)
        elif ".pwconv" in name and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        new[name] = tensor
    return new


LAYOUTS = (
    Layout(
        SYSTEM,
        "ConvNeXt",
        has(r"feature[._]0\.0\.weight$", r"feature[._]0\.1\.gamma$"),
        convnext_to_native,
        convnext_from_native,
        ignores=IGNORES,
        settings={
            "act": partial(nn.GELU, approximate="tanh"),
            "mix": ChannelLinear,
            "norm_eps": 1e-6,
            "patch": SameConv2d,
        },
        data=recipe("bicubic", crop=0.95),
        notes=(
            "GELU is approximated by tanh",
            "channels are mixed by linear layers in all sizes",
            "patches that pixels only partly cover are filled up with zeros",
        ),
    ),
)
