"""Blocks of transformers with rotary position embeddings: EVA-02 (https://arxiv.org/abs/2303.11331) and later ones."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drop_path import drop_path
from .rotary import RopeStyle, rotate
from .transformer import TransformerStyle


class RotaryAttention(nn.Module):
    """Self-attention with rotated queries and keys: (N, L, dim) to the same shape."""

    def __init__(self, dim: int, heads: int, style: "RotaryStyle") -> None:
        super().__init__()
        self.heads, self.halves = heads, style.halves
        self.qkv = nn.Linear(dim, 3 * dim, bias=style.qkv_bias)
        self.attn_drop = nn.Dropout(style.attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(style.drop)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.proj(attend(q, k, v, table, self.halves, rate)))


class KeylessBiasAttention(nn.Module):
    """RotaryAttention with a bias for queries and values, and none for keys, which would not change the weights."""

    def __init__(self, dim: int, heads: int, style: "RotaryStyle") -> None:
        super().__init__()
        self.heads, self.halves = heads, style.halves
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.attn_drop = nn.Dropout(style.attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(style.drop)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        biased = self.qkv(x) + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = biased.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.proj(attend(q, k, v, table, self.halves, rate)))


class SplitAttention(nn.Module):
    """RotaryAttention with separate projections, none of them fused, and optionally a norm before the last layer."""

    def __init__(self, dim: int, heads: int, style: "RotaryStyle") -> None:
        super().__init__()
        self.heads, self.halves = heads, style.halves
        self.q_proj = nn.Linear(dim, dim, bias=style.qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=style.qkv_bias)
        self.attn_drop = nn.Dropout(style.attn_drop)
        self.norm = nn.LayerNorm(dim, style.eps) if style.attn_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(style.drop)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        rate = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.proj(self.norm(attend(q, k, v, table, self.halves, rate))))


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, halves: bool, rate: float) -> Tensor:
    """Attention of q, k and v (N, heads, L, chs), with dropout of its weights: (N, L, heads * chs)."""
    if table is not None:
        q, k = rotate(q, table, halves), rotate(k, table, halves)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)


class SwiGlu(nn.Module):
    """An MLP with gated values, whose gates and values have separate layers, and optionally a norm of the values."""

    def __init__(self, dim: int, style: "RotaryStyle") -> None:
        super().__init__()
        hidden = int(dim * style.mlp_ratio)
        self.fc1_g, self.fc1_x = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.act = style.act()
        self.drop1 = nn.Dropout(style.drop)
        self.norm = nn.LayerNorm(hidden, style.eps) if style.mlp_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(style.drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1_g(x)) * self.fc1_x(x)
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


@dataclass(frozen=True, slots=True)
class RotaryStyle(TransformerStyle):
    """What the blocks of a transformer with rotary position embeddings have in common.

    Attributes:
        attention: class of the attention.
        rope: the rotary position embeddings; None for none.
        attn_norm: norm before the last layer of a SplitAttention.
        mlp_norm: norm before the last layer of a SwiGlu.
    """

    attention: type[RotaryAttention | KeylessBiasAttention | SplitAttention] = RotaryAttention
    rope: RopeStyle | None = None
    attn_norm: bool = False
    mlp_norm: bool = False

    @property
    def halves(self) -> bool:
        """Whether channels are paired by halves."""
        return self.rope is not None and self.rope.halves


class RotaryBlock(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a shortcut: (N, L, dim) to the same shape."""

    def __init__(self, dim: int, heads: int, style: RotaryStyle, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, style.eps)
        self.attn = style.attention(dim, heads, style)
        self.gamma_1 = layer_scale(dim, style.layer_scale)
        self.drop_path1 = drop_path(drop)
        self.norm2 = nn.LayerNorm(dim, style.eps)
        self.mlp = style.mlp(dim, style)
        self.gamma_2 = layer_scale(dim, style.layer_scale)
        self.drop_path2 = drop_path(drop)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        x = x + self.drop_path1(scaled(self.attn(self.norm1(x), table), self.gamma_1))
        return x + self.drop_path2(scaled(self.mlp(self.norm2(x)), self.gamma_2))


def layer_scale(dim: int, start: float) -> nn.Parameter | None:
    """A learned factor per channel, (dim); None for a start of 0."""
    return nn.Parameter(torch.full((dim,), start)) if start else None


def scaled(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


class LatentPool(nn.Module):
    """Attention of one learned query to all tokens, then an MLP (https://arxiv.org/abs/2504.13181): to (N, dim)."""

    def __init__(self, dim: int, heads: int, style: TransformerStyle) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=dim**-0.5))
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, style.eps)
        self.mlp = style.mlp(dim, style)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.proj(attend(q, k, v, None, False, 0.0))
        return (x + self.mlp(self.norm(x)))[:, 0]
