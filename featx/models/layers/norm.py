"""Norms over the channels of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels at each position: (N, C, H, W) to the same shape, channels last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Scale each channel by its norm over the image, relative to the other channels' (https://arxiv.org/abs/2301.00808).

    (N, C, H, W) to the same shape; starts as the identity.
    """

    def __init__(self, chs: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(chs))
        self.bias = nn.Parameter(torch.zeros(chs))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(p=2, dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        relative = response / (response.mean(1, keepdim=True) + self.eps)
        weight, bias = (vector.to(x.dtype).view(1, -1, 1, 1) for vector in (self.weight, self.bias))
        return x + torch.addcmul(bias, weight, x * relative)
