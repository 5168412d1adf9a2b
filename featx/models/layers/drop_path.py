"""Stochastic depth, https://arxiv.org/abs/1603.09382."""

from torch import Tensor, nn

from ...errors import ArgumentError


class DropPath(nn.Module):
    """In training, set a residual branch to zero per sample with probability `rate`, and rescale the other samples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for the module's repr."""
        return f"rate={self.rate:.3f}"


def drop_path(rate: float) -> nn.Module:
    """A DropPath, or the identity for a rate of 0."""
    return DropPath(rate) if rate else nn.Identity()


def require_rate(rate: float) -> float:
    """The rate itself. ArgumentError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ArgumentError(f"drop_path_rate={rate}: expected 0 or more, and less than 1")
    return rate


def rising_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates per block and stage that increase linearly from 0 at the first block to `rate` at the last."""
    last = max(sum(depths) - 1, 1)
    rates = [require_rate(rate) * block / last for block in range(sum(depths))]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]
