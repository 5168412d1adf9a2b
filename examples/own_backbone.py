"""Your own backbone under the contract: the three structures of a network, registered and built by name.

python examples/own_backbone.py
"""

import torch
from torch import Tensor, nn

import featx


class Layer(nn.Sequential):
    """Convolution, norm and ReLU with a stride of 2."""

    def __init__(self, in_chs: int, chs: int) -> None:
        super().__init__(nn.Conv2d(in_chs, chs, 3, 2, 1), nn.BatchNorm2d(chs), nn.ReLU(inplace=True))


class Head(nn.Sequential):
    def __init__(self, chs: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chs, num_classes))


class DummyNet1(nn.Module):
    """Sequential: children that run one after another. A level is a child."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.feature_info = []
        self.layer1 = Layer(in_channels, 16)
        self.feature_info.append({"chs": 16, "reduction": 2, "name": "layer1"})
        self.layer2 = Layer(16, 32)
        self.feature_info.append({"chs": 32, "reduction": 4, "name": "layer2"})
        self.layer3 = Layer(32, 64)
        self.feature_info.append({"chs": 64, "reduction": 8, "name": "layer3"})
        self.head = Head(64, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class DummyNet2(nn.Module):
    """Flattened: one sequential holds all layers. A level is a layer inside it."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.feature_info = []
        self.flatten_sequential = True
        layers, in_chs = [], in_channels
        for i, chs in enumerate((16, 32, 64)):
            layers.append(Layer(in_chs, chs))
            self.feature_info.append({"chs": chs, "reduction": 2 ** (i + 1), "name": f"layers.{i}"})
            in_chs = chs
        self.layers = nn.Sequential(*layers)
        self.head = Head(64, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class DummyNet3(nn.Module):
    """Neither: in each stage two layers run in parallel, and their sum is the input of the next layer."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.ModuleList(Layer(in_channels, 16) for _ in range(2))
        self.stage1 = Layer(16, 32)
        self.layer2 = nn.ModuleList(Layer(32, 64) for _ in range(2))
        self.stage2 = Layer(64, 64)
        self.head = Head(64, num_classes)

    def forward_features(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stage1(self.layer1[0](x) + self.layer1[1](x))
        return self.stage2(self.layer2[0](x) + self.layer2[1](x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.head(self.forward_features(x))


class DummyFeatureNet3(DummyNet3):
    """Rewritten: a subclass whose `forward_features` returns the maps."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.is_rewritten = True
        self.feature_info = [
            {"chs": 32, "reduction": 4, "name": "stage1"},
            {"chs": 64, "reduction": 16, "name": "stage2"},
        ]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        x1 = self.stage1(self.layer1[0](x) + self.layer1[1](x))
        x2 = self.stage2(self.layer2[0](x1) + self.layer2[1](x1))
        return [x1, x2]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.forward_features(x)


@featx.register_model
def dummynet18(pretrained: bool = False, num_classes: int = 1000, in_channels: int = 3, **kwargs) -> nn.Module:
    return featx.build_model_with_cfg(DummyNet1, pretrained, num_classes=num_classes, in_channels=in_channels, **kwargs)


@featx.register_model
def dummynet34(pretrained: bool = False, num_classes: int = 1000, in_channels: int = 3, **kwargs) -> nn.Module:
    return featx.build_model_with_cfg(DummyNet2, pretrained, num_classes=num_classes, in_channels=in_channels, **kwargs)


@featx.register_model
def dummynet50(pretrained: bool = False, **kwargs) -> nn.Module:
    cls = DummyFeatureNet3 if kwargs.get("features_only", False) else DummyNet3
    return featx.build_model_with_cfg(cls, pretrained, **kwargs)


def main() -> None:
    images = torch.randn(2, 3, 224, 320)
    for name in ("dummynet18", "dummynet34", "dummynet50"):
        backbone = featx.create_model(name, features_only=True, out_indices=[1, 0])
        print(name)
        for level, feature_map in zip(backbone.feature_info, backbone(images), strict=True):
            print(f"  {level.name}: {level.chs} channels at 1/{level.reduction}, {tuple(feature_map.shape)}")


if __name__ == "__main__":
    main()
