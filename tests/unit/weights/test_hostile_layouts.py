"""Checkpoints with the names of a program and other shapes: for every layout an error that lists the differences."""

from functools import cache
from random import Random

import pytest
import torch
from torch import Tensor

import featx
from featx.meta_init import init_empty_weights
from featx.weights.convert import family_names
from featx.weights.layout import all_layouts

NAMES = (
    *("resnet18", "vit_tiny_patch16_224", "mobilenetv2_035", "mobilenetv3_small_050", "efficientnet_b0"),
    *("convnext_atto", "convnextv2_atto", "mobilevit_xxs", "mobilevitv2_050", "regnety_002", "repvgg_a0"),
    *("resnest14d", "rexnet_100", "hrnet_w18_small", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
)


@cache
def native(name: str) -> dict[str, Tensor]:
    with init_empty_weights():
        model = featx.create_model(name)
    return {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in model.state_dict().items()}


def written(name: str) -> dict[str, dict[str, Tensor]]:
    """The checkpoint of a model as each program writes it that can."""
    with init_empty_weights():
        kinds = family_names(featx.create_model(name))
    found = {"native": native(name)}
    for number, layout in enumerate(all_layouts()):
        if layout.family in kinds and layout.from_native is not None:
            try:
                found[f"{layout.system} {number}"] = layout.from_native(native(name))
            except featx.CheckpointError:  # there is no place for this model in that program
                continue
    return found


CHANGES = (
    lambda tensor: torch.tensor(1.0),
    lambda tensor: torch.zeros(0),
    lambda tensor: tensor[:1] if tensor.ndim else tensor,
    lambda tensor: tensor.unsqueeze(0),
    lambda tensor: tensor.flatten(),
    lambda tensor: torch.zeros(tensor.shape, dtype=torch.int64),
    lambda tensor: torch.zeros(tensor.shape, dtype=torch.complex64),
    lambda tensor: torch.zeros(3, 5),
    lambda tensor: torch.zeros(2, 0, 3, 1),
)


def damaged(state: dict[str, Tensor], chance: Random) -> dict[str, Tensor]:
    """With some tensors, or nearly all, of another shape or type, and one missing."""
    share, missing = chance.choice((0.02, 0.2, 0.9)), chance.choice(list(state))
    return {
        name: chance.choice(CHANGES)(tensor) if chance.random() < share else tensor
        for name, tensor in state.items()
        if name != missing
    }


def refuse(name: str, seed: int, times: int) -> None:
    chance = Random(seed)
    for state in written(name).values():
        for _ in range(times):
            with pytest.raises(featx.CheckpointError) as refused:
                featx.create_model(name, checkpoint_path=damaged(state, chance))
            assert len(str(refused.value).splitlines()) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_under_a_programs_names_are_errors_that_list_them(name):
    refuse(name, seed=0, times=1)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_many_other_shapes_under_a_programs_names_are_errors_that_list_them(name):
    refuse(name, seed=1, times=6)


def test_a_first_convolution_without_axes_is_an_error_that_names_it():
    name = "convnextv2_atto"
    state = next(s for system, s in written(name).items() if system.startswith("transformers "))
    first = next(key for key in state if key.endswith("embeddings.patch_embeddings.weight"))
    with pytest.raises(featx.CheckpointError, match=r"stem.0.weight: \(\), the model needs"):
        featx.create_model(name, checkpoint_path={**state, first: torch.tensor(1.0)})
