"""A misspelt name is answered with similar names."""

import pytest

import featx

MEANT = {
    "reznet50": "resnet50",
    "ResNet50": "resnet50",
    "resnet-50": "resnet50",
    "resnett18": "resnet18",
    "resnet81": "resnet18",
    "mobilnetv3_small_050": "mobilenetv3_small_050",
    "mobilnetv3": "mobilenetv3_large_075",
    "efficentnet_b0": "efficientnet_b0",
    "convnxt_tiny": "convnext_tiny",
    "mobilvitv2_100": "mobilevitv2_100",
    "hrnet18": "hrnet_w18",
    "regnet_y_002": "regnety_002",
    "repvgga0": "repvgg_a0",
    "deit_tny": "deit_tiny_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dencenet121": "timm/densenet121",
    "vgg16bn": "timm/vgg16_bn",
    "maxvitt": "torchvision/maxvit_t",
    "vit_small_dinov3": "vit_small_patch16_dinov3",
    "timm/swin_tiny_patch4_window7_22": "swin_tiny_patch4_window7_224",
    "torchvision/resnet19": "resnet18",
    "transformers/dinov22": "dinov2",
}


def first(message: str) -> str:
    """The first name that a message suggests."""
    for words in ("did you mean ", "the closest are ['", "but ['"):
        if words in message:
            return message.partition(words)[2].split("'")[0].split(" or ")[0].rstrip("?")
    return message


@pytest.mark.parametrize("name", MEANT)
def test_the_first_suggestion_is_what_was_meant(name):
    with pytest.raises(featx.UnknownModelError) as refused:
        featx.create_model(name)
    assert first(str(refused.value)) == MEANT[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("densenet121", r"ask for timm/densenet121 or torchvision/densenet121$"),
        ("facebook/dinov2-base", "ask for transformers/facebook/dinov2-base, .* hf-hub:facebook/dinov2-base"),
        ("./models/resnet18", r"no model is named './models/resnet18'; for a folder, ask for 'local-dir:./models"),
        ("tim/resnet18", r"did you mean timm/resnet18\?"),
        ("TorchVision/resnet18", "ask for torchvision/resnet18"),
    ],
)
def test_what_is_not_a_misspelling_is_answered_with_what_to_ask_for(name, words):
    with pytest.raises(featx.UnknownModelError, match=words):
        featx.create_model(name)


def test_nothing_is_suggested_for_what_is_like_no_name():
    with pytest.raises(featx.UnknownModelError, match=r"; see featx.list_models\(\)"):
        featx.create_model("qqqqqqqq")
