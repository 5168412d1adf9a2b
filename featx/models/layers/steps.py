"""Strides and dilations of stages: dilation after the output stride is reached (https://arxiv.org/abs/1606.00915)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ArgumentError

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class Step:
    """The stride of a block, the dilation of its first spatial convolution (`entry`), and that of the others."""

    stride: int = 1
    entry: int = 1
    dilation: int = 1

    @property
    def after(self) -> "Step":
        """The step of the next blocks in the same stage."""
        return Step(1, self.dilation, self.dilation)


def plan_steps(strides: Sequence[int], *, stem: int, output_stride: int) -> list[tuple[Step, int]]:
    """(step of the first block, total stride after the stage) for each stage after a stem of stride `stem`.

    A stage that would exceed `output_stride` has dilation instead of stride, from its second spatial convolution.

    Raises:
        ArgumentError: `output_stride` is not 8, 16 or 32.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ArgumentError(f"output_stride={output_stride!r}: choose one of {OUTPUT_STRIDES}")
    reduction, dilation, plan = stem, 1, []
    for stride in strides:
        if reduction * stride > output_stride:
            plan.append((Step(1, dilation, dilation * stride), reduction))
            dilation *= stride
        else:
            reduction *= stride
            plan.append((Step(stride, dilation, dilation), reduction))
    return plan
