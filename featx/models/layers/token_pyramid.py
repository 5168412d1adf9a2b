"""TokenPyramid: the maps of plain ViTs, whose levels are the patch tokens after each block."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy as shallow_copy
from typing import Self

import torch
import torch.fx
from torch import Tensor, nn

from ...backbone import Pyramid
from ...errors import ArgumentError

# symbolic tracers record this call as a whole, because it branches on memory formats
torch.fx.wrap("format_of")


class TokenPyramid(Pyramid):
    """Base class of plain ViTs.

    Attributes:
        patch_embed: images to patches (N, dim, h, w).
        blocks: the blocks; level i is the output of blocks[i].
        norm: the norm after the last block; Identity without one.
        norm_maps: whether maps and prefix tokens pass through `norm`.
        num_prefix_tokens: class token and registers, which precede the patches.
    """

    gives_tokens = True
    patch_embed: nn.Module
    blocks: nn.Sequential | nn.ModuleList
    norm: nn.Module
    norm_maps: bool
    num_prefix_tokens: int

    @abstractmethod
    def _tokens(self, patches: Tensor) -> Tensor:
        """The input of the blocks: (N, dim, h, w) to (N, num_prefix_tokens + h * w, dim)."""

    @abstractmethod
    def _block_outputs(self, tokens: Tensor, size: Sequence[int], added: int = 0) -> Iterator[Tensor]:
        """The tokens (N, num_prefix_tokens + h * w + added, dim) after each block.

        Args:
            tokens: the input of the blocks, of the same shape.
            size: (h, w) of the grid of patches.
            added: number of tokens after the patches, which have no position.
        """

    def _outputs(self, patches: Tensor) -> Iterator[Tensor]:
        """The tokens (N, num_prefix_tokens + h * w, dim) after each block, of patches (N, dim, h, w)."""
        return self._block_outputs(self._tokens(patches), patches.shape[-2:])

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Prefix tokens and map per level. The class token precedes the registers; `norm_maps` normalizes both."""
        patches = self.patch_embed(x)
        taken: dict[int, Tensor] = {}
        for level, tokens in enumerate(self._outputs(patches)):
            if level in levels:
                taken[level] = self.norm(tokens) if self.norm_maps else tokens
            if level == max(levels):
                break
        return [self._split(taken[level], patches) for level in levels]

    def forward_features_and_maps(self, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        last = len(self.blocks) - 1
        *pairs, end = self.forward_tokens(x, [*levels, last] if last not in levels else [*levels])
        tokens = torch.cat([end[0], end[1].flatten(2).transpose(1, 2)], 1)
        features = tokens if self.norm_maps else self.norm(tokens)
        return features, [*pairs, end] if last in levels else pairs

    @property
    def maps_are_normed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether maps and prefix tokens pass through the last norm."""
        return self.norm_maps

    def normed(self) -> Self:
        """This model with `norm_maps=True`, with shared parameters. ArgumentError if its tokens have no last norm."""
        if isinstance(self.norm, nn.Identity):
            raise ArgumentError(
                f"this {type(self).__name__} has no norm after its blocks that maps could pass through; with "
                "fc_norm=True the norm follows the pool"
            )
        other = shallow_copy(self)
        other.norm_maps = True
        return other

    def raw(self) -> Self:
        """This model with `norm_maps=False`, with shared parameters."""
        other = shallow_copy(self)
        other.norm_maps = False
        return other

    def normed_tokens(self, prefix: Tensor, map_: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the last norm to prefix tokens and map; with `norm_maps` it is already applied."""
        if self.norm_maps:
            return prefix, map_
        return self.norm(prefix), self.norm(map_.movedim(1, -1)).movedim(-1, 1)

    def _split(self, tokens: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens, and the patch tokens as a map in the memory format of `patches`."""
        prefix, rest = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        map_ = rest.transpose(1, 2).unflatten(2, patches.shape[-2:])
        return prefix, map_.contiguous(memory_format=format_of(patches))


def format_of(patches: Tensor) -> torch.memory_format:
    return torch.contiguous_format if patches.is_contiguous() else torch.channels_last
