"""Same weights, same numbers: every variant against timm, with random weights and norm statistics.

Differences are relative to the largest value of the reference. Both sides run the same float operations in the same
order, so that 1e-5 leaves room only for other builds of the kernels. A training step is compared in doubles, where a
deep network's gradients keep more digits than the rounding of floats would leave: 1e-10 is far above what doubles lose
and far below what any mistake makes. So are dilated maps: with random weights some deep networks amplify the rounding
of floats until nothing else is left.

The smallest variants are compared as they are. Of every other one, blocks that are in every attribute like the one
before them are left out, at timm as here, after names and shapes of all of them were found equal.
"""

import copy

import pytest
import timm
import torch
from conftest import SMALL, SMALL_VARIANTS, VARIANTS
from support.timm_parity import Pair, in_doubles, pair, timm_dilates, weights_for
from timm.models import get_pretrained_cfg

import featx
from featx.registry import lookup

TOLERANCE = 1e-5
IN_DOUBLES = 1e-10
SIZES = [(224, 224), (192, 256), (223, 225)]
# Odd at every stride that a stage has; and at an output stride of 8 more cells than a kernel dilated by 4 reaches over.
ODD = (65, 97)
# Even at every stride that a stage has: three of the smallest images of which a map at 1/32 has more than one cell.
BATCH = (3, 3, 32, 64)

DILATED = [name for name in SMALL if timm_dilates(name) and "mobilenetv3" not in name]


def full(name: str, **kwargs) -> Pair:
    """With weights, and at its full depth."""
    models = pair(name, **kwargs)
    models.take(weights_for(models.ours))
    return models


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_maps_equal_timms(name):
    models = full(name)
    assert max(models.difference(*size) for size in SIZES) <= TOLERANCE


@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", DILATED)
def test_dilated_logits_and_maps_equal_timms(name, output_stride):
    assert full(name, output_stride=output_stride).difference(97, 161) <= TOLERANCE


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_doubles_agree_to_ten_digits_and_so_do_gradients_and_statistics_of_a_training_step(name):
    models = pair(name)
    models.take(in_doubles(weights_for(models.ours)))
    assert models.difference(64, 96) <= IN_DOUBLES
    assert models.training_difference(3, 3, 64, 96) <= IN_DOUBLES


@pytest.fixture(scope="module")
def compared() -> list[tuple[Pair, str, dict[str, float]]]:
    """Pairs, without values, the variant that each is of, and how far its two sides are from each other."""
    return []


@pytest.mark.sweep
@pytest.mark.parametrize("name", featx.list_models())
def test_every_variant_equals_timms(name, compared, record_property):
    record_property("variant", name)
    every = {}
    for dilated in ({}, {"output_stride": 8}, {"output_stride": 16}) if timm_dilates(name) else ({},):
        models = pair(name, logits=not dilated, **dilated)
        left_out = models.leave_out_repeats()
        twin, differences = next((row[1:] for row in compared if row[0].alike(models)), (None, None))
        if differences is None:
            differences = largest_differences(models, *dilated.values())
            compared.append((models, name, differences))
        if not dilated:
            record_property("left out", f"{len(left_out)}" + (f", then as {twin}" if twin else ""))
        every |= differences
    for column, difference in every.items():
        record_property(column, f"{difference:.1e}")
        assert difference <= (IN_DOUBLES if column == "training step" else TOLERANCE), column


def largest_differences(models: Pair, output_stride: int | None = None) -> dict[str, float]:
    """By what was compared: the column of the table. `models` have no values, before and after."""
    values = copy.deepcopy(models)
    weights = weights_for(values.ours)
    values.take(weights)
    maps = values.difference(*ODD)
    if output_stride is not None:
        return {f"stride {output_stride}": maps}
    values.take(in_doubles(weights))
    return {"maps": maps, "training step": values.training_difference(*BATCH)}


@pytest.mark.parametrize("name", VARIANTS)
def test_default_weights_and_preprocessing_are_timms(name):
    variant, cfg = lookup(name), get_pretrained_cfg(name)
    assert (variant.weights[0] if variant.weights else None) == (cfg.tag if cfg.hf_hub_id else None)
    assert {f"{name}.{tag}" for tag in variant.weights} == set(timm.list_pretrained(f"{name}.*"))
    stated = (*cfg.input_size[1:], cfg.mean, cfg.std, cfg.interpolation, cfg.crop_pct, cfg.crop_mode)
    data = variant.data
    assert (*data.size, data.mean, data.std, data.interpolation, data.crop, data.crop_mode) == stated


@pytest.mark.parametrize("name", SMALL)
def test_fresh_weights_are_drawn_from_the_distributions_of_timms(name):
    torch.manual_seed(0)
    ours, reference = featx.create_model(name), timm.create_model(name)
    theirs = dict(reference.named_parameters())
    for key, tensor in ours.named_parameters():
        if theirs[key].min() == theirs[key].max():
            assert torch.equal(tensor, theirs[key]), key
            continue
        # the median of n magnitudes is known to about 1.2 / sqrt(n) of itself; unlike the deviation it does not mind
        # the rare values of 2 that timm's truncated normal draws by rounding
        accuracy = 10 / tensor.numel() ** 0.5
        magnitude = tensor.abs().median().item()
        assert magnitude == pytest.approx(theirs[key].abs().median().item(), rel=accuracy), key
        assert tensor.mean().item() == pytest.approx(theirs[key].mean().item(), abs=accuracy * magnitude), key
