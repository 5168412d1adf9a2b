"""Train FCOS, a detector of torchvision, on a featx backbone for a minute from random weights, and draw its detections.

python examples/detect.py [--seconds 60] [--backbone resnet18]
"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from shapes import CLASSES, SIDE, Scene, batches, scenes
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

import featx
from featx.adapters.torchvision import detection_backbone, detector_arguments
from featx.necks import FPN, Pipeline
from featx.training import param_groups

BATCH = 8
FIGURE = Path("demo/detect.png")
Detections = list[dict[str, torch.Tensor]]


def main(
    backbone: Annotated[str, typer.Option(help="any model of create_model with strides 8, 16, 32")] = "resnet18",
    seconds: Annotated[float, typer.Option(help="training time in seconds")] = 60,
) -> None:
    """Train the detector, print losses and average precision, and save a figure."""
    torch.manual_seed(0)
    train, held_out = scenes(512, seed=0), scenes(64, seed=1)
    model = build(backbone)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=1e-3)
    before, start, step, batch_stream = predict(model, held_out), time.monotonic(), 0, batches(train, BATCH, seed=0)
    print(f"before: AP50 {precision(before, held_out):.3f}")
    while (elapsed := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - elapsed / seconds)
        batch = next(batch_stream)
        losses = model.train()([scene.image for scene in batch], targets(batch))
        loss = torch.stack([*losses.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        step += 1
        if step % 10 == 0:
            print(f"step {step:4}  {elapsed:4.0f} s  loss {loss.item():.3f}", flush=True)
    after = predict(model, held_out)
    print(f"after {step} steps: AP50 {precision(after, held_out):.3f}")
    FIGURE.parent.mkdir(exist_ok=True)
    draw(held_out[:6], before, after).savefig(FIGURE)
    print(f"The figure is {FIGURE}.")


def build(backbone: str) -> FCOS:
    """Build FCOS (https://arxiv.org/abs/1904.01355) on three levels of the backbone."""
    extractor = featx.create_model(backbone, features_only=True, out_indices=[-3, -2, -1])
    source = Pipeline(extractor, FPN(extractor.feature_info, 64))
    size = {"min_size": SIDE, "max_size": SIDE, "score_thresh": 0.05, "detections_per_img": 20}
    return FCOS(detection_backbone(source), len(CLASSES), **detector_arguments(FCOS, source), **size)


def targets(batch: list[Scene]) -> Detections:
    return [{"boxes": scene.boxes, "labels": scene.labels} for scene in batch]


@torch.inference_mode()
def predict(model: FCOS, held_out: list[Scene]) -> Detections:
    """Return the boxes, scores and labels of each image."""
    return model.eval()([scene.image for scene in held_out])


def precision(detections: Detections, held_out: list[Scene]) -> float:
    """Return the average precision at an IoU of 0.5."""
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    metric.update(detections, targets(held_out))
    return metric.compute()["map"].item()


def draw(examples: list[Scene], before: Detections, after: Detections) -> Figure:
    """Draw a row per scene: the true boxes, and the detections before and after training."""
    figure = Figure(figsize=(7, 2.3 * len(examples)), layout="constrained")
    for row, (scene, axes) in enumerate(zip(examples, figure.subplots(len(examples), 3), strict=True)):
        boxes = ({"boxes": scene.boxes, "labels": scene.labels}, confident(before[row]), confident(after[row]))
        for axis, detections, title in zip(axes, boxes, ("truth", "before", "after"), strict=True):
            axis.imshow(to_pil_image(draw_boxes(scene.image, detections)))
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
    return figure


def confident(detections: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = detections["scores"] > 0.4
    return {key: value[kept] for key, value in detections.items()}


def draw_boxes(image: torch.Tensor, detections: dict[str, torch.Tensor]) -> torch.Tensor:
    large = torch.nn.functional.interpolate(image[None], scale_factor=3)[0]
    if not len(detections["boxes"]):
        return large
    names = [CLASSES[label] for label in detections["labels"].tolist()]
    return draw_bounding_boxes(large, detections["boxes"] * 3, names, colors="yellow", width=3)


if __name__ == "__main__":
    typer.run(main)
