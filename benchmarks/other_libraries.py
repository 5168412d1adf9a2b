"""Extractors of torchvision and transformers that return the same maps, for the models that these libraries have.

Shapes are equal, except for the stem of transformers' ResNet, whose map is taken after the pool, and a ViT's tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# by featx's name: torchvision's name, and the modules whose outputs are the maps
TORCHVISION: dict[str, tuple[str, list[str]]] = {
    "resnet50": ("resnet50", ["relu", "layer1", "layer2", "layer3", "layer4"]),
    "mobilenetv3_large_100": ("mobilenet_v3_large", [f"features.{i}" for i in (1, 3, 6, 12, 16)]),
    "efficientnet_b0": ("efficientnet_b0", [f"features.{i}" for i in (1, 2, 3, 5, 7)]),
    "convnext_tiny": ("convnext_tiny", [f"features.{i}" for i in (1, 3, 5, 7)]),
}
# by featx's name: transformers' prefix of classes, and the arguments of its configuration
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


def extractors_of(name: str) -> dict[str, nn.Module]:
    """Return the extractors of a model with random weights, by library; only libraries that have it."""
    builders: dict[str, Callable[[str], nn.Module]] = {}
    if name in TORCHVISION:
        builders["torchvision"] = of_torchvision
    if name in TRANSFORMERS:
        builders["transformers"] = of_transformers
    return {library: build(name).eval() for library, build in builders.items()}


def of_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    torchvision_name, nodes = TORCHVISION[name]
    return create_feature_extractor(get_model(torchvision_name, weights=None).eval(), nodes)


def of_transformers(name: str) -> nn.Module:
    import transformers

    prefix, arguments = TRANSFORMERS[name]
    config = getattr(transformers, f"{prefix}Config")(**arguments)
    backbone = getattr(transformers, f"{prefix}Backbone", None)
    if backbone is not None and "out_indices" in arguments:
        return backbone(config)
    return getattr(transformers, f"{prefix}Model")(config)


def shapes(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of a model's outputs, to check that equal maps are compared."""
    from torch.utils._pytree import tree_leaves

    with torch.inference_mode():
        return [tuple(leaf.shape) for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
