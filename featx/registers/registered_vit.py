"""Registers at test time, without training: Jiang et al. 2025 (https://arxiv.org/abs/2506.08010).

Tokens of zeros are added after the patches. In the MLPs, the activation of each register neuron is 0 at the patches,
and at the added tokens the one of largest magnitude over all tokens. Class token and trained registers keep theirs. The
added tokens are left out of the maps.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import require_number, require_strings
from ..errors import ArgumentError, shortened
from ..models.layers.token_pyramid import TokenPyramid
from ..tracing.copies import structural_copy
from ..wrappers import FeatureExtractWrapper
from ..wrappers.transparent import Transparent
from .artifacts import require_extractor
from .neurons import RegisterNeuron, by_block, require_vit


def add_registers(
    extractor: FeatureExtractWrapper, neurons: Sequence[RegisterNeuron], count: int = 1
) -> FeatureExtractWrapper:
    """An extractor with registers, to which the activation of register neurons is moved from the patches.

    It shares the parameters of `extractor` under the same names, and has the same levels and prefix tokens.

    Args:
        extractor: an extractor of a native ViT.
        neurons: the neurons that make artifacts, from `register_neurons`.
        count: number of registers.

    Raises:
        ArgumentError: the model is not a native ViT, has added registers already, or lacks some of the neurons.
    """
    require_extractor(extractor)
    require_number(count, "count", 1)
    vit, neurons = require_vit(extractor), require_strings(neurons, "neurons", RegisterNeuron, "RegisterNeurons")
    if isinstance(vit, RegisteredViT):
        raise ArgumentError("this extractor has added registers already: pass all neurons to one add_registers")
    _require_neurons(vit, neurons)
    return extractor.with_pyramid(RegisteredViT(vit, neurons, count))


class RegisteredViT(Transparent[TokenPyramid], TokenPyramid):
    """A copy of a ViT with added registers, which shares all parameters.

    Args:
        vit: the ViT.
        neurons: the register neurons.
        count: number of registers.
    """

    def __init__(self, vit: TokenPyramid, neurons: Sequence[RegisterNeuron], count: int) -> None:
        copied = structural_copy(vit)
        for block, channels in by_block(neurons).items():
            mlp: Any = copied.blocks[block].mlp
            mlp.fc2 = RegisterLinear(mlp.fc2, channels, vit.num_prefix_tokens, count)
        super().__init__(copied)
        self.feature_info, self.num_prefix_tokens = vit.feature_info, vit.num_prefix_tokens
        self.in_chans, self.norm_maps, self._count = vit.in_chans, vit.norm_maps, count

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last norm (N, num_prefix_tokens + h * w, dim), prefix tokens first."""
        *_, tokens = self._outputs(self.patch_embed(x))
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens that `forward_features` returns, or pooled features without classes."""
        return self._inner.forward_head(x, pre_logits)

    def _tokens(self, patches: Tensor) -> Tensor:
        return self._inner._tokens(patches)

    def _block_outputs(self, tokens: Tensor, size: Sequence[int], added: int = 0) -> Iterator[Tensor]:
        tokens = F.pad(tokens, (0, 0, 0, self._count))
        for outputs in self._inner._block_outputs(tokens, size, added + self._count):
            yield outputs[:, : -self._count]


class RegisterLinear(nn.Linear):
    """The last layer of an MLP, behind a move of the activation of some channels from the patches to the registers.

    Args:
        linear: the layer, whose parameters are shared.
        channels: the register neurons.
        prefix: number of tokens before the patches.
        count: number of registers, after the patches.
    """

    is_neuron: Tensor

    def __init__(self, linear: nn.Linear, channels: Sequence[int], prefix: int, count: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.prefix, self.count, self.training = prefix, count, linear.training
        mask = torch.zeros(linear.in_features, dtype=torch.bool, device=linear.weight.device)
        mask[list(channels)] = True
        self.register_buffer("is_neuron", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(N, prefix + patches + count, in_features) to (N, prefix + patches + count, out_features)."""
        strongest = input.gather(1, input.abs().argmax(1, keepdim=True))  # (N, 1, in_features)
        prefix, patches, registers = input.tensor_split((self.prefix, input.shape[1] - self.count), dim=1)
        patches = patches.masked_fill(self.is_neuron, 0)
        registers = torch.where(self.is_neuron, strongest, registers)
        return super().forward(torch.cat([prefix, patches, registers], 1))


def _require_neurons(vit: TokenPyramid, neurons: Sequence[RegisterNeuron]) -> None:
    """ArgumentError, listing those that the ViT lacks, unless there are neurons and the ViT has all of them."""
    blocks = [block for block in vit.blocks if not isinstance(block, nn.Identity)]  # a cut model has fewer
    hidden = [fc2.in_features for block in blocks if isinstance(fc2 := block.get_submodule("mlp.fc2"), nn.Linear)]
    missing = [
        f"channel {neuron.channel} of block {neuron.block}"
        for neuron in neurons
        if not (0 <= neuron.block < len(hidden) and 0 <= neuron.channel < hidden[neuron.block])
    ]
    if missing or not neurons:
        raise ArgumentError(
            f"neurons: got {', '.join(shortened(missing)) or 'none'}: expected channels of fc2, 0 to {hidden[0] - 1}, "
            f"in blocks 0 to {len(hidden) - 1} of this extractor, as register_neurons finds them"
        )
