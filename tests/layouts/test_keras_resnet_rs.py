"""ResNet-RS of Keras 2, whose layers are restated here from keras.applications, on arrays by Keras's names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import images, relative_difference
from support.keras_files import values, write_h5
from torch import Tensor

import featx

DEPTHS, TOLERANCE = (2, 1, 2, 1), 1e-5  # single precision, the same operations in another order


class KerasResNetRS:
    """Keras's layers, which create the array of a variable when they run first."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def of(self, name: str, *shape: int) -> Tensor:
        if name not in self.arrays:
            self.arrays[name] = values(name, shape)
        return torch.from_numpy(self.arrays[name])

    def conv(self, x: Tensor, name: str, chs: int, side: int, stride: int = 1, bias: bool = False) -> Tensor:
        kernel = self.of(f"{name}/kernel", side, side, x.shape[1], chs).permute(3, 2, 0, 1)
        shift = self.of(f"{name}/bias", chs) if bias else None
        return F.conv2d(x, kernel, shift, stride, side // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        parts = ("moving_mean", "moving_variance", "gamma", "beta")
        return F.batch_norm(x, *(self.of(f"{name}/{part}", x.shape[1]) for part in parts), eps=1e-5)

    def gated(self, x: Tensor, name: str) -> Tensor:
        y = F.relu(self.conv(x.mean((2, 3), keepdim=True), f"{name}_se_reduce", x.shape[1] // 4, 1, bias=True))
        return x * torch.sigmoid(self.conv(y, f"{name}_se_expand", x.shape[1], 1, bias=True))

    def block(self, x: Tensor, name: str, chs: int, stride: int, projects: bool) -> Tensor:
        shortcut = x
        if projects:
            pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else x
            shortcut = self.norm(
                self.conv(pooled, f"{name}_projection_conv", 4 * chs, 1), f"{name}_projection_batch_norm"
            )
        x = F.relu(self.norm(self.conv(x, f"{name}_conv_1", chs, 1), f"{name}batch_norm_1"))
        x = F.relu(self.norm(self.conv(x, f"{name}_conv_2", chs, 3, stride), f"{name}_batch_norm_2"))
        x = self.norm(self.conv(x, f"{name}_conv_3", 4 * chs, 1), f"{name}_batch_norm_3")
        return F.relu(self.gated(x, f"{name}_se") + shortcut)

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps after each group of blocks, and the logits."""
        for number, (chs, stride) in enumerate(((32, 2), (32, 1), (64, 1), (64, 2)), 1):
            x = self.conv(x, f"stem_1_stem_conv_{number}", chs, 3, stride)
            x = F.relu(self.norm(x, f"stem_1_stem_batch_norm_{number}"))
        maps = []
        for group, depth in enumerate(DEPTHS):
            for index in range(depth):
                name, stride = f"BlockGroup{group + 2}__block_{index}_", 2 if group and not index else 1
                x = self.block(x, name, 64 << group, stride, not index)
            maps.append(x)
        kernel = self.of("predictions/kernel", x.shape[1], 5)
        return maps, x.mean((2, 3)) @ kernel + self.of("predictions/bias", 5)


@torch.no_grad()
@pytest.mark.parametrize(("end", "stem"), [("", "stem_1"), (":0", "stem_2")])
def test_maps_and_logits_are_those_of_keras_layers(end, stem, tmp_path):
    """Keras numbers the stems of all models in a process."""
    keras, x = KerasResNetRS(), images(1, 3, 66, 94)
    maps, logits = keras(x)
    arrays = {name.replace("stem_1", stem): array for name, array in keras.arrays.items()}
    held = {**arrays, "normalization/mean": np.zeros(3, np.float32)}
    path = write_h5(tmp_path / "w.h5", held, end=end)
    model = featx.create_model("resnetrs50", num_classes=5, checkpoint_path=path, depths=DEPTHS).eval()
    assert model.load_report.layout == "keras"
    assert model.load_report.skipped == {"normalization/mean": "preprocessing that is a part of Keras's model"}
    assert relative_difference(model(x), logits) <= TOLERANCE
    extractor = featx.create_model(
        "resnetrs50", features_only=True, out_indices=(1, 2, 3, 4), checkpoint_path=path, depths=DEPTHS
    ).eval()
    for ours, theirs in zip(extractor(x), maps, strict=True):
        assert relative_difference(ours, theirs) <= TOLERANCE
