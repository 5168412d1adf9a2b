"""Train DeepLabV3 on a backbone for a minute from random weights, and draw its predictions.

python examples/segment.py [--seconds 60] [--backbone mobilevitv2_050]
"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from shapes import CLASSES, Scene, batches, scenes
from torchmetrics import JaccardIndex

import featx
from featx.heads import Segmenter
from featx.training import param_groups

BATCH = 16
FIGURE = Path("demo/segment.png")


def main(
    backbone: Annotated[str, typer.Option(help="any model of create_model")] = "mobilevitv2_050",
    seconds: Annotated[float, typer.Option(help="training time in seconds")] = 60,
) -> None:
    """Train the segmenter, print losses and intersection over union, and save a figure."""
    torch.manual_seed(0)
    train, held_out = scenes(512, seed=0), scenes(64, seed=1)
    model = featx.create_segmenter("deeplabv3", backbone, num_classes=len(CLASSES), output_stride=16)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=2e-3)
    before, start, step, batch_stream = predict(model, held_out), time.monotonic(), 0, batches(train, BATCH, seed=0)
    print(f"before: IoU {mean_iou(before, held_out):.3f}")
    while (elapsed := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - elapsed / seconds)
        batch = next(batch_stream)
        loss = model.train()(normalize(model, batch), torch.stack([scene.mask for scene in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0:
            print(f"step {step:4}  {elapsed:4.0f} s  loss {loss.item():.3f}", flush=True)
    after = predict(model, held_out)
    print(f"after {step} steps: IoU {mean_iou(after, held_out):.3f}")
    FIGURE.parent.mkdir(exist_ok=True)
    draw(held_out[:6], before, after).savefig(FIGURE)
    print(f"The figure is {FIGURE}.")


def normalize(model: Segmenter, batch: list[Scene]) -> torch.Tensor:
    """Return images (N, 3, H, W), normalized as the backbone's weights expect."""
    data = model.data_config or featx.DataConfig()
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (torch.stack([scene.image for scene in batch]) - mean) / std


@torch.inference_mode()
def predict(model: Segmenter, held_out: list[Scene]) -> torch.Tensor:
    """Return the most probable class of each pixel, (N, H, W)."""
    return model.eval()(normalize(model, held_out)).argmax(1)


def mean_iou(predicted: torch.Tensor, held_out: list[Scene]) -> float:
    """Return the intersection over union, averaged over the classes."""
    metric = JaccardIndex(task="multiclass", num_classes=len(CLASSES))
    return metric(predicted, torch.stack([scene.mask for scene in held_out])).item()


def draw(examples: list[Scene], before: torch.Tensor, after: torch.Tensor) -> Figure:
    """Draw a row per scene: the image, its true classes, and the predictions before and after training."""
    figure = Figure(figsize=(8, 2 * len(examples)), layout="constrained")
    for row, (scene, axes) in enumerate(zip(examples, figure.subplots(len(examples), 4), strict=True)):
        axes[0].imshow(scene.image.permute(1, 2, 0))
        for axis, classes in zip(axes[1:], (scene.mask, before[row], after[row]), strict=True):
            axis.imshow(classes, cmap="viridis", vmin=0, vmax=len(CLASSES) - 1, interpolation="nearest")
        for axis, title in zip(axes, ("image", "truth", "before", "after"), strict=True):
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
    colors = [Patch(color=colormaps["viridis"](i / (len(CLASSES) - 1)), label=name) for i, name in enumerate(CLASSES)]
    figure.legend(handles=colors, loc="outside lower center", ncols=len(CLASSES))
    return figure


if __name__ == "__main__":
    typer.run(main)
