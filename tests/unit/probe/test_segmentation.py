"""Mean IoU agrees with torchmetrics and a case by hand; masks are read as the model's images are cropped."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from featx import ArgumentError, DataConfig
from featx.bulk.preview import ConfiguredModule
from featx.preprocessing import cropped
from featx.probe import MaskFolder
from featx.probe.masks import MaskCrop
from featx.probe.segmentation import Cells, cell_labels, cells_per_image, mean_iou, overlaps, segmentation_score


def test_mean_iou_of_a_case_by_hand():
    truth, predicted = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    counts = overlaps(truth, predicted, 3)
    assert counts.tolist() == [[2, 2, 0], [2, 3, 0], [3, 2, 0]]
    assert mean_iou(counts).item() == pytest.approx((2 / 3 + 2 / 3) / 2)  # class 2 does not occur


def test_mean_iou_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(0, 6, (2, 500), generator=generator)
    predicted[truth == 5] = 4  # a class that is never predicted
    expected = MulticlassJaccardIndex(7, average="macro")(predicted, truth)
    assert mean_iou(overlaps(truth, predicted, 7)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_cell_has_the_label_of_most_of_its_pixels():
    mask = torch.tensor([[1, 1, 0, 0], [1, 7, 0, 255], [3, 3, 255, 255], [5, 5, 255, 2]], dtype=torch.uint8)
    assert cell_labels(mask, 2, 2).tolist() == [[1, 0], [3, 255]]


def test_the_score_is_the_mean_iou_of_predictions_by_other_folds():
    """Cells whose vector is their class are all classified correctly; equal vectors of two classes are of one."""
    labels = torch.tensor([0, 1, 2]).repeat(8)
    cells = Cells(torch.eye(3)[labels], labels, torch.arange(8).repeat_interleave(3))
    score = segmentation_score(cells, torch.arange(8) % 2, 3, 0)
    assert (score.value, score.low, score.high) == (1, 1, 1)
    merged = Cells((labels == 0).float()[:, None], labels, cells.images)
    assert segmentation_score(merged, torch.arange(8) % 2, 3, 0).value == pytest.approx((1 + 8 / 16 + 0) / 3)


def test_fewer_cells_are_drawn_of_more_images():
    assert [cells_per_image(images) for images in (10, 256, 1024, 10**6)] == [256, 256, 64, 1]


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_masks_are_cropped_as_images_are(mode):
    """A mask that is a picture of squares is where the same squares of the image are."""
    config = DataConfig((32, 32), interpolation="nearest", crop=0.8, crop_mode=mode)
    ids = np.kron(np.random.default_rng(0).integers(0, 200, (6, 9)), np.ones((10, 10))).astype(np.uint8)
    image = Image.fromarray(np.stack([ids] * 3, -1))
    expected = np.asarray(cropped(ConfiguredModule(config))(image))[..., 0]
    assert (MaskCrop(config)(ids).numpy() == expected).all()


def test_a_border_outside_the_image_is_unlabeled():
    found = MaskCrop(DataConfig((32, 32), crop=1.0, crop_mode="border"))(np.full((10, 20), 3, np.uint8))
    assert found[:8].eq(255).all()
    assert found[8:24].eq(3).all()


def test_a_mask_of_a_whole_image_is_not_cropped():
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (MaskCrop(None)(ids).numpy() == ids).all()


def test_a_mask_has_the_name_of_its_image(tmp_path):
    (tmp_path / "cat").mkdir()
    palette = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).convert("P")
    palette.putdata([0, 1, 2, 255])
    palette.save(tmp_path / "cat/1.png")
    assert MaskFolder(tmp_path).read("cat/1.jpg", (2, 2)).tolist() == [[0, 1], [2, 255]]


def save(folder, pixels, mode=None):
    Image.fromarray(np.array(pixels), mode).save(folder / "1.png")
    return folder


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (
            np.zeros((3, 4), np.uint8),
            r"1.png has 4×3 pixels, and its image 2×2: save masks in the size",
        ),
        (np.zeros((2, 2, 3), np.uint8), r"1.png has colors \(RGB\) and not class ids: save it with one channel"),
        (
            np.full((2, 2), 9, np.uint8),
            r"1.png has the ids 9: expected 0 to 2 for 3 classes, or 255 for pixels",
        ),
        (np.full((2, 2), 300, np.uint16), r"1.png has the ids 300: expected 0 to 2"),
    ],
    ids=["size", "colors", "id", "16 bits"],
)
def test_masks_that_do_not_fit_are_refused(tmp_path, pixels, words):
    with pytest.raises(ArgumentError, match=words):
        MaskFolder(save(tmp_path, pixels), 3).read("1.jpg", (2, 2))


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "1.png").write_text("no image")
    with pytest.raises(ArgumentError, match=r"1.png cannot be read: ImageError"):
        MaskFolder(tmp_path).read("1.jpg", (2, 2))


def test_absent_masks_are_listed(tmp_path):
    save(tmp_path, np.zeros((2, 2), np.uint8))
    with pytest.raises(ArgumentError, match=r"1 of 2 images have no mask, such as '2.jpg': expected .*2.png"):
        MaskFolder(tmp_path).require(["1.jpg", "2.jpg"])
    with pytest.raises(ArgumentError, match=r"the folder does not exist"):
        MaskFolder(tmp_path / "none").require(["1.jpg"])
