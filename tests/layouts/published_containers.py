"""Files with containers, prefixes and dtypes around a network."""

from argparse import Namespace

import torch

from layouts.published_file import RESNET, VIT, State, named, ours, prefixed, without, zeros


def flattened(state: State) -> State:
    """Names of timm's extractors of ConvNeXt, with underscores."""
    return named(without(state, "head."), (r"^(stem|stages)\.(\d+)\.", r"\1_\2."))


CONTAINERS = {
    "Lightning": ours(
        RESNET,
        lambda state: {"state_dict": prefixed("model.", state) | zeros("loss_fn.weight"), "epoch": 3},
        logits=True,
        container="model",
    ),
    **{
        prefix: ours(RESNET, lambda state, prefix=prefix: {"state_dict": prefixed(prefix, state)}, logits=True)
        for prefix in (
            *("net.", "trunk.", "_fsdp_wrapped_module.", "module._orig_mod.", "_orig_mod.module."),
            "model.feature_extractor.feature_extractor.",
        )
    },
    "segmentation_models_pytorch": ours(
        "convnext_atto", lambda state: prefixed("encoder.model.", flattened(state)) | zeros("decoder.blocks.0.weight")
    ),
    "segmentation_models_pytorch, encoder": ours(
        "convnext_atto", lambda state: prefixed("encoder.model.", flattened(state))
    ),
    "backbone with flattened names beside a head": ours(
        "convnext_atto", lambda state: prefixed("backbone.", flattened(state)) | zeros("head.fc1.weight")
    ),
    "PyTorch's ImageNet example": ours(
        RESNET,
        lambda state: {
            "epoch": 3,
            "arch": RESNET,
            "state_dict": prefixed("module.", state),
            "best_acc1": torch.tensor(70.0),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        logits=True,
        suffix=".pth.tar",
    ),
    "training file with a Namespace": ours(
        RESNET, lambda state: {"model": state, "args": Namespace(lr=0.1)}, logits=True, allowed=(Namespace,)
    ),
    "grid of positions that is not square": ours(
        VIT, lambda state: state, fields={"depth": 2, "image_size": (128, 32)}, size=(128, 32), logits=True
    ),
}
DTYPES = {
    f"{dtype} weights": ours(
        RESNET,
        lambda state, dtype=dtype: {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        },
        logits=True,
    )
    for dtype in (torch.float64,)
}
