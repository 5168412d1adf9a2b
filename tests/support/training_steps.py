"""Models to train, and what is asked of them."""

import torch
from conftest import images

NAMES = ["resnet18", "mobilenetv3_small_050", "vit_wee_patch16_reg1_gap_256", "timm/test_resnet", "timm/test_vit"]


def batch(model):
    side = 160 if model.data_config.size == (160, 160) else 64
    return images(2, 3, side, side)


def step(model, x):
    """One step's gradients: mean squares of all maps."""
    torch.manual_seed(1)
    model.train()
    sum(map_.square().mean() for map_ in model(x)).backward()
