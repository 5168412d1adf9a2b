"""The same maps from torchvision and from transformers, where these have the model, as their users would get them.

The shapes are the same, but for the stem's map of transformers' ResNet, taken behind the pool, and the tokens of a ViT.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# by featx's name: torchvision's, and the modules whose outputs are the maps
TORCHVISION: dict[str, tuple[str, list[str]]] = {
    "resnet50": ("resnet50", ["relu", "layer1", "layer2", "layer3", "layer4"]),
    "mobilenetv3_large_100": ("mobilenet_v3_large", [f"features.{i}" for i in (1, 3, 6, 12, 16)]),
    "efficientnet_b0": ("efficientnet_b0", [f"features.{i}" for i in (1, 2, 3, 5, 7)]),
    "convnext_tiny": ("convnext_tiny", [f"features.{i}" for i in (1, 3, 5, 7)]),
}
# by featx's name: transformers' configuration, and what it says differently from its defaults
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("ResNet", {"out_indices": [0, 1, 2, 3, 4]}),
    "convnext_tiny": ("ConvNext", {"hidden_sizes": [96, 192, 384, 768], "out_indices": [1, 2, 3, 4]}),
    "mobilevit_s": ("MobileViT", {"output_hidden_states": True}),
    "mobilevitv2_100": ("MobileViTV2", {"output_hidden_states": True}),
    "vit_small_patch16_224": (
        "ViT",
        {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "output_hidden_states": True},
    ),
}


def elsewhere(name: str) -> dict[str, nn.Module]:
    """Extractors of the model by package, with random weights; of the packages that have it."""
    found: dict[str, Callable[[str], nn.Module]] = {}
    if name in TORCHVISION:
        found["torchvision"] = of_torchvision
    if name in TRANSFORMERS:
        found["transformers"] = of_transformers
    return {package: make(name).eval() for package, make in found.items()}


def of_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    own, nodes = TORCHVISION[name]
    return create_feature_extractor(get_model(own, weights=None).eval(), nodes)


def of_transformers(name: str) -> nn.Module:
    import transformers

    own, stated = TRANSFORMERS[name]
    config = getattr(transformers, f"{own}Config")(**stated)
    backbone = getattr(transformers, f"{own}Backbone", None)
    if backbone is not None and "out_indices" in stated:
        return backbone(config)
    return getattr(transformers, f"{own}Model")(config)


def shapes(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what it returns, to see that the same is compared."""
    from torch.utils._pytree import tree_leaves

    with torch.inference_mode():
        return [tuple(leaf.shape) for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
