"""What the tests of adapters share: small sources, and a step of training that reaches the first weights."""

import io

import pytest
import torch
from conftest import random_extractor
from torch import nn

from featx.necks import FPN, Pipeline, SimpleFeaturePyramid

# Convolutional backbones and transformers of featx, and bridged models of each kind.
CNNS = ["resnet18", "mobilenetv3_small_050", "timm/test_resnet"]
VITS = ["vit_wee_patch16_reg1_gap_256", "vit_tiny_patch16_dinov3_qkvb", "timm/test_vit"]
BACKBONES = CNNS + VITS

# A small Mask2Former of transformers.
MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 4,
    "num_labels": 2,
}


def matrix(kinds, names=BACKBONES):
    """Every kind with every backbone as parameters of a test; of most kinds, one of featx's each in the fast suite."""
    fast = ("mobilenetv3_small_050", "vit_wee_patch16_reg1_gap_256")
    pairs = [(kind, name) for kind in kinds for name in names]
    marks = {pair: [] if pair[1] in fast or pair[0] is kinds[0] else [pytest.mark.sweep] for pair in pairs}
    named = {pair: f"{getattr(pair[0], '__name__', pair[0])}-{pair[1]}" for pair in pairs}
    return [pytest.param(*pair, marks=marks[pair], id=named[pair]) for pair in pairs]


def is_vit(name):
    return name in VITS


def pyramid(name, chs=8):
    """Strides of 4 to 32 pixels, all of `chs` channels."""
    if is_vit(name):
        plain = random_extractor(name, out_indices=[-1])
        return Pipeline(plain, SimpleFeaturePyramid(plain.feature_info, chs))
    plain = random_extractor(name, out_indices=[1, 2, 3, 4])
    return Pipeline(plain, FPN(plain.feature_info, chs))


def side(name):
    """Of images it takes: test_vit is built for one size."""
    return 160 if name == "timm/test_vit" else 96


def stem(model):
    """The first weight of a convolution, as modules are registered; that of the backbone."""
    return next(module.weight for module in model.modules() if isinstance(module, nn.Conv2d))


def assert_trains(model, loss):
    """Every parameter gets a finite gradient from `loss`, and the stem's is not zero."""
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert stem(model).grad.abs().max() > 0


def reloaded(model, fresh):
    """`fresh`, whose own numbers are others, in eval mode with those of `model`, through a file."""
    with torch.no_grad():
        for tensor in [*fresh.parameters(), *fresh.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh.eval()


def assert_close(ours, reference):
    """To what memory layout does to a convolution's sums."""
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
