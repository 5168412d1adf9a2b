"""How similar maps in bfloat16 are to those in float32: the least cosine of a model's levels, on photographs.

Weights are random; statistics of batch norms are those of the photographs, as training would leave them.

python benchmarks/precision.py [NAME ...]
"""

import sys

import torch
from fresh import machine
from torch import Tensor, nn
from turns import FAMILIES

import featx
from featx.runtime.optimize import Runtime

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
WAYS: tuple[Runtime, ...] = ("eager", "onednn")


def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    print("| model | optimize, bf16 | onednn, bf16 | deepest level of each |\n|---|---|---|---|")
    for name in sys.argv[1:] or FAMILIES:
        torch.manual_seed(0)
        model = featx.create_model(name, features_only=True)
        images = photographs(model)
        accustom(model, images)
        found = [featx.optimize(model, dtype=torch.bfloat16, runtime=r, example=images).agreement for r in WAYS]
        least = " | ".join(f"{min(cosines.values()):.5f}" for cosines in found if cosines is not None)
        deepest = ", ".join(f"{[*cosines.values()][-1]:.5f}" for cosines in found if cosines is not None)
        print(f"| {name} | {least} | {deepest} |", flush=True)


def photographs(model: nn.Module) -> Tensor:
    """(N, 3, H, W), preprocessed as the model's weights expect."""
    from PIL import Image
    from skimage import data

    prepare = featx.transform(model)
    return torch.stack([prepare(Image.fromarray(getattr(data, name)()).convert("RGB")) for name in PHOTOGRAPHS])


@torch.no_grad()
def accustom(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of these images, in place; in eval mode afterwards."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # take those of the forward as they are
    model.train()
    model(images)
    model.eval()


if __name__ == "__main__":
    main()
