"""Files of DINOv3: Meta's names, restated, and transformers' models."""

import torch
import transformers
from torch import Tensor, nn

from layouts.published_file import PublishedFile, Reference, State, named, ours, seeded, without

FIELDS = {"dim": 48, "depth": 2, "heads": 3, "image_size": 64}
SIZES = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}


def meta_vit(state: State) -> State:
    """With the bias that a mask zeroes, the mask token and the wavelengths, which only Meta's files hold."""
    biases = {
        f"blocks.{block}.attn.qkv.{leaf}": tensor
        for block in range(FIELDS["depth"])
        for leaf, tensor in (("bias", torch.zeros(144)), ("bias_mask", torch.full((144,), torch.nan)))
    }
    names = named(state, (r"^reg_token$", "storage_tokens"), (r"\.gamma_(\d)$", r".ls\1.gamma"))
    return {**names, **biases, "mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}


def meta_convnext(state: State) -> State:
    """With the last norm twice, which is also one of a list."""
    names = named(
        without(state, "head.fc."),
        (r"^head\.norm\.", "norm."),
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    )
    return names | {f"norms.3.{leaf}": names[f"norm.{leaf}"] for leaf in ("weight", "bias")}


def hf_vit() -> tuple[State, Reference]:
    config = transformers.DINOv3ViTConfig(**SIZES, image_size=64, patch_size=16, num_register_tokens=4)
    model = seeded(lambda: transformers.DINOv3ViTModel(config))

    def maps(x: Tensor) -> list[Tensor]:
        hidden = model(x, output_hidden_states=True).hidden_states[1:]
        return [model.norm(tokens)[:, 5:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in hidden]

    return model.state_dict(), maps


def hf_convnext() -> tuple[State, Reference]:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[3, 1, 2, 1])
    model: nn.Module = seeded(lambda: transformers.DINOv3ConvNextModel(config))
    return model.state_dict(), lambda x: list(model(x, output_hidden_states=True).hidden_states[1:])


VIT, CONVNEXT = "vit_small_patch16_dinov3", "convnext_tiny"
SMALL = {"chs": (16, 24, 32, 48), "depths": (3, 1, 2, 1)}
DINOV3 = {
    "Meta DINOv3 ViT": ours(VIT, meta_vit, fields=FIELDS),
    "Meta DINOv3 ConvNeXt": ours(CONVNEXT, meta_convnext, fields=SMALL),
    "transformers DINOv3 ViT": PublishedFile(VIT, hf_vit, FIELDS),
    "transformers DINOv3 ConvNeXt": PublishedFile(CONVNEXT, hf_convnext, SMALL),
}
