"""Small transformers of torchvision."""

from torch import nn
from torchvision import models


def narrow_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    )


def narrow_swin() -> nn.Module:
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[1, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=7
    )
