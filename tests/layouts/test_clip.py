"""Image towers of CLIP and SigLIP: timm's converter is the reference for OpenAI's names, transformers for its own."""

from random import Random

import pytest
import timm
import torch
import transformers
from conftest import images, randomize, relative_difference, same_state
from timm.layers import QuickGELU as TimmQuickGELU
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import featx
from featx import CheckpointError
from featx.models.layers.transformer import QuickGELU, TransformerStyle
from featx.weights.layout import all_layouts, find_layout

State = dict[str, Tensor]
TOLERANCE = 1e-5  # single precision, the same operations in another order
NAME = "vit_base_patch16_clip_224"
FIELDS = {"dim": 96, "depth": 2, "heads": 3, "image_size": 64}
WIDTHS = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES = {"image_size": 64, "patch_size": 16}
SYSTEMS = ("clip", "clip-quickgelu", "transformers-clip", "transformers-clip-quickgelu")
ARCHIVE = ("input_resolution", "context_length", "vocab_size")
TEXT = {
    **{name: torch.zeros(7, 8) for name in ("positional_embedding", "token_embedding.weight", "text_projection")},
    **{name: torch.zeros(8) for name in ("ln_final.weight", "transformer.resblocks.0.ln_1.weight")},
    "logit_scale": torch.tensor(4.6),
}


def native(num_classes: int = 0, **fields: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(featx.create_model(NAME, num_classes=num_classes, **FIELDS, **fields))
    if num_classes:
        nn.init.zeros_(model.head.bias)
    return model


def written(system: str, state: State) -> State:
    from_native = find_layout(system, ["ViT"]).from_native
    assert from_native is not None
    return from_native(state)


def loaded(checkpoint: State, **choice: object) -> nn.Module:
    choice = {"num_classes": 0, **FIELDS, **choice}
    return featx.create_model(NAME, checkpoint_path=checkpoint, **choice).eval()


@pytest.mark.parametrize("classes", [0, 24])
@pytest.mark.parametrize("system", SYSTEMS)
def test_there_and_back_changes_nothing(system, classes):
    state = native(classes).state_dict()
    theirs = written(system, state)
    layout = find_layout(system, ["ViT"], theirs)
    assert same_state(layout.to_native(theirs, state.keys()), state)
    assert not layout.recognizes(state)
    found = {other.system for other in all_layouts() if other.recognizes(theirs)}
    assert found == {system.removesuffix("-quickgelu"), f"{system.removesuffix('-quickgelu')}-quickgelu"}


@pytest.mark.parametrize(("layout", "act"), [("clip", nn.GELU), ("clip-quickgelu", TimmQuickGELU)])
def test_outputs_are_those_of_timms_conversion_of_openais_names(layout, act):
    theirs = written("clip", native(24).state_dict())
    assert {"visual.conv1.weight", "visual.proj", "visual.class_embedding", "visual.ln_post.bias"} <= theirs.keys()
    assert theirs["visual.proj"].shape == (96, 24)
    reference = timm.create_model(
        NAME, num_classes=24, embed_dim=96, depth=2, num_heads=3, img_size=64, act_layer=act
    ).eval()
    reference.load_state_dict(checkpoint_filter_fn({**theirs, **TEXT}, reference), strict=True)
    model = loaded({**theirs, **TEXT}, num_classes=24, layout=layout)
    assert {*TEXT} <= model.load_report.skipped.keys()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(model(x), reference(x)) <= TOLERANCE


def test_the_activation_matters():
    theirs, x = written("clip", native().state_dict()), images(2, 3, 64, 64)
    with torch.no_grad():
        exact, quick = (loaded(theirs, layout=layout)(x) for layout in ("clip", "clip-quickgelu"))
    assert relative_difference(exact, quick) > 1e-4


@pytest.mark.parametrize("system", ["clip", "transformers-clip"])
def test_without_a_choice_of_the_activation_loading_asks_for_it(system):
    with pytest.raises(CheckpointError, match=rf"'{system}' \(MLPs compute GELU.*'{system}-quickgelu'.*layout="):
        loaded(written(system, native().state_dict()))


def test_openais_archive_says_that_its_activation_is_quick_gelu():
    theirs = written("clip", native().state_dict()) | {name: torch.tensor(64) for name in ARCHIVE}
    for layout in (None, "clip"):
        model = loaded(theirs, layout=layout)
        assert model.config.style == TransformerStyle(act=QuickGELU, eps=1e-5)
        assert model.load_report.layout == "clip-quickgelu"


def test_a_tower_alone_is_read():
    state = native().state_dict()
    tower = {name.removeprefix("visual."): tensor for name, tensor in written("clip", state).items()}
    assert same_state(loaded(tower, layout="clip").state_dict(), state)


def test_the_model_that_is_saved_computes_quick_gelu(tmp_path):
    model = loaded(written("clip", native().state_dict()), layout="clip-quickgelu")
    featx.save(model, tmp_path / "saved")
    again = featx.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def hf_clip(act: str, kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPVisionConfig(**WIDTHS, **SIZES, hidden_act=act, projection_dim=24)
        return randomize(kind(config))


@pytest.mark.parametrize(("act", "suffix"), [("gelu", ""), ("quick_gelu", "-quickgelu")])
@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_tokens_are_those_of_transformers_at_any_size(act, suffix, size):
    reference = hf_clip(act, transformers.CLIPVisionModel)
    model = loaded(reference.state_dict(), layout=f"transformers-clip{suffix}")
    x = images(1, 3, *size)
    with torch.no_grad():
        tokens = reference(x, interpolate_pos_encoding=True).last_hidden_state
        assert relative_difference(model.blocks(model._tokens(model.patch_embed(x))), tokens) <= TOLERANCE


def test_the_projection_is_the_classifier():
    reference = hf_clip("quick_gelu", transformers.CLIPVisionModelWithProjection)
    model = loaded(reference.state_dict(), num_classes=24, layout="transformers-clip-quickgelu")
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(model(x), reference(x).image_embeds) <= TOLERANCE


def test_text_beside_the_image_tower_is_left_out():
    vision = transformers.CLIPVisionConfig(**WIDTHS, **SIZES)
    text = transformers.CLIPTextConfig(vocab_size=11, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    reference = randomize(transformers.CLIPModel(config))
    old = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    model = loaded({**reference.state_dict(), **old}, num_classes=24, layout="transformers-clip-quickgelu")
    assert any(name.startswith("text_model.") for name in model.load_report.skipped)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference.visual_projection(reference.vision_model(x).pooler_output)
        assert relative_difference(model(x), expected) <= TOLERANCE


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_maps_are_those_of_siglip(size, prefix):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = randomize(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**WIDTHS, **SIZES)))
    theirs = {f"{prefix}{name}": tensor for name, tensor in reference.state_dict().items()}
    theirs |= {"logit_scale": torch.zeros(1), "logit_bias": torch.zeros(1)} if prefix else {}
    extractor = featx.create_model(
        "vit_base_patch16_224", features_only=True, norm_maps=True, checkpoint_path=theirs, **FIELDS
    ).eval()
    assert extractor.load_report.layout == "transformers-siglip"
    x = images(1, 3, *size)
    with torch.no_grad():
        tokens = reference(x, interpolate_pos_encoding=True).last_hidden_state
        expected = tokens.transpose(1, 2).unflatten(2, (size[0] // 16, -1))
        assert relative_difference(extractor(x)[-1], expected) <= TOLERANCE


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    ("name", "choice", "problem"),
    [
        (NAME, {"num_classes": 7}, "projects without a bias"),
        ("vit_small_patch14_reg4_dinov2", {}, "no place for .*'reg_token'"),
        ("vit_base_patch16_clip_224", {"num_classes": 0, "class_token": False, "global_pool": "avg"}, "class token"),
    ],
)
def test_what_clip_has_no_place_for_is_refused(system, name, choice, problem):
    model = randomize(featx.create_model(name, **{**choice, "depth": 1}))
    with pytest.raises(CheckpointError, match=problem):
        written(system, model.state_dict())


CHANGES = (
    lambda tensor: torch.tensor(1.0),
    lambda tensor: torch.zeros(0),
    lambda tensor: tensor.unsqueeze(0),
    lambda tensor: tensor.flatten(),
    lambda tensor: torch.zeros(2, 0, 3, 1),
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("system", SYSTEMS)
def test_other_shapes_are_errors_that_list_them(system, seed):
    chance, theirs = Random(seed), written(system, native(24).state_dict())
    damaged = {name: chance.choice(CHANGES)(t) if chance.random() < 0.3 else t for name, t in theirs.items()}
    with pytest.raises(CheckpointError) as refused:
        loaded(damaged, num_classes=24, layout=system)
    assert len(str(refused.value).splitlines()) <= 12
