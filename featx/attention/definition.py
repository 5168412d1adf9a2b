"""Attention as it is defined (https://arxiv.org/abs/1706.03762), for kernels that never write it down."""

import torch
from torch import Tensor


@torch.no_grad()
def probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query keyᵀ · scale + mask), the weights inside `F.scaled_dot_product_attention`, before dropout.

    query, key: (..., heads, queries, dim), (..., heads, keys, dim), seen as the kernel does under autocast. Returns
    (..., heads, queries, keys), in float32 or the inputs' precision, whichever is higher. A query whose keys are all
    masked has zeros.
    """
    query, key = as_computed(query), as_computed(key)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            allowed = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if allowed else scores + as_computed(attn_mask)
        return scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)


@torch.no_grad()
def gradient_of_weights(output: Tensor, value: Tensor, heads: int) -> Tensor:
    """From the gradient of what attention puts out to that of its weights: of `weights @ value`, output valueᵀ.

    output: (..., heads, queries, dim); value: (..., heads, keys, dim), or fewer heads which are repeated.
    """
    value = value.repeat_interleave(heads // value.shape[-3], dim=-3)
    return precise(output) @ precise(value).transpose(-2, -1)


def as_computed(x: Tensor) -> Tensor:
    """The tensor with the values that a kernel under the present autocast reads, in float32 or more."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(device))
    return precise(x)


def precise(x: Tensor) -> Tensor:
    """In float32, or more if it is."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
