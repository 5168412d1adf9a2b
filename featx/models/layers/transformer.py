"""The blocks of a transformer that normalizes before it mixes (https://arxiv.org/abs/2010.11929)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drop_path import drop_path


class Mlp(nn.Module):
    """Each token for itself through two linear layers: (N, L, dim) to the same shape."""

    def __init__(self, dim: int, style: "TransformerStyle") -> None:
        super().__init__()
        hidden = int(dim * style.mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = style.act()
        self.drop1 = nn.Dropout(style.drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(style.drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class GatedMlp(nn.Module):
    """The same, with one half of the hidden channels gating the other (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, dim: int, style: "TransformerStyle") -> None:
        super().__init__()
        hidden = int(dim * style.mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = style.act()
        self.drop1 = nn.Dropout(style.drop)
        self.fc2 = nn.Linear(hidden // 2, dim)
        self.drop2 = nn.Dropout(style.drop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop2(self.fc2(self.drop1(self.act(gate) * value)))


@dataclass(frozen=True, slots=True)
class TransformerStyle:
    """What the blocks of a transformer have in common.

    Attributes:
        mlp_ratio: hidden channels of the MLP divided by the channels of a token; both halves of a GatedMlp count.
        mlp: class of the MLP, built from the channels of a token and the style.
        layer_scale: initial value of a learned factor per channel of each residual branch; 0 omits the factor.
        act: makes the activation of the MLPs.
        eps: of the norms.
        drop: dropout rate after every linear layer except the first one of attention.
        attn_drop: dropout rate of attention weights.
    """

    mlp_ratio: float = 4.0
    mlp: Callable[[int, Any], nn.Module] = Mlp
    act: Callable[[], nn.Module] = nn.GELU
    qkv_bias: bool = True
    layer_scale: float = 0.0
    eps: float = 1e-6
    drop: float = 0.0
    attn_drop: float = 0.0


TANH_GELU = partial(nn.GELU, approximate="tanh")


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's CLIP computes (https://arxiv.org/abs/1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention in several heads: (N, L, dim) to the same shape."""

    def __init__(self, dim: int, heads: int, style: TransformerStyle) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=style.qkv_bias)
        self.attn_drop = nn.Dropout(style.attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(style.drop)

    def forward(self, x: Tensor) -> Tensor:
        # each (N, heads, L, dim / heads)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class LayerScale(nn.Module):
    """A learnt factor per channel (https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a shortcut: (N, L, dim) to the same shape."""

    def __init__(self, dim: int, heads: int, style: TransformerStyle, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, style.eps)
        self.attn = Attention(dim, heads, style)
        self.ls1 = LayerScale(dim, style.layer_scale) if style.layer_scale else nn.Identity()
        self.drop_path1 = drop_path(drop)
        self.norm2 = nn.LayerNorm(dim, style.eps)
        self.mlp = style.mlp(dim, style)
        self.ls2 = LayerScale(dim, style.layer_scale) if style.layer_scale else nn.Identity()
        self.drop_path2 = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def init_transformer(model: nn.Module) -> None:
    """Normal linear layers of deviation 0.02 with zero biases, in place; the values that an MLP gates start at 1."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, GatedMlp):
            half = module.fc2.in_features
            nn.init.normal_(module.fc1.weight[half:], std=1e-6)
            nn.init.ones_(module.fc1.bias[half:])
