"""Models to tap, and what their modules return."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import Tensor, nn


def conv(chs: int, out: int, stride: int = 1, last: nn.Module | None = None) -> nn.Sequential:
    last = nn.ReLU(inplace=True) if last is None else last
    return nn.Sequential(nn.Conv2d(chs, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), last)


class Branches(nn.Module):
    """No chain: a skip across stages, branches that meet, in-place changes of what was returned, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 2)
        self.left, self.right = conv(8, 8), conv(8, 8)
        self.down = conv(16, 16, 2, nn.Hardtanh())
        self.deep = conv(16, 24, 2, nn.Identity())
        self.unused = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.ones(1, 24, 1, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        joined = torch.cat([self.left(x), self.right(x)], 1)
        middle = self.down(joined)
        middle += F.avg_pool2d(joined, 2)
        deep = self.deep(middle)
        deep = deep.mul_(self.token)
        return {"logits": self.head(deep.mean((2, 3))), "middle": middle}


class Tokens(nn.Module):
    """A transformer with prefix tokens whose blocks return tuples and whose stages are driven by a loop."""

    def __init__(self, prefix: int = 2, size: int | None = None) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.size, self.prefix = size, nn.Parameter(torch.randn(1, prefix, 16))
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(16)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.size is not None and tuple(pixels.shape[2:]) != (self.size, self.size):
            raise ValueError(f"only {self.size}")
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)[0]
        return self.norm(x)[:, 0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        update = self.mlp(self.norm(x))
        return x + update, None, update


def outputs(model: nn.Module, names: list[str], x: Tensor) -> list:
    """What the modules of the intact model return, copied before the model changes it."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: copy.deepcopy(out)})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


def run(extractor: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return extractor(x)


@pytest.fixture
def branches() -> nn.Module:
    return randomize(Branches())


class Reads(nn.Module):
    """Reads the parameters of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.stem(x).mean((2, 3)), self.head.weight, self.head.bias)
