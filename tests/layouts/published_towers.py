"""Files of image encoders: towers of models of images and text, and encoders of transformers."""

import torch
import transformers
from torch import Tensor, nn

from layouts.published_file import TINY, VIT, PublishedFile, Reference, State, named, ours, prefixed, seeded, zeros

CLIP = "vit_base_patch16_clip_224"
CLIP_FIELDS = {"dim": 96, "depth": 2, "heads": 3, "image_size": 64, "num_classes": 0}
CLIP_SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = zeros("positional_embedding", "token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "text_projection")


def openai(state: State) -> State:
    names = named(
        state,
        (r"^cls_token$", "class_embedding"),
        (r"^pos_embed$", "positional_embedding"),
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    names["class_embedding"] = names["class_embedding"].flatten()
    names["positional_embedding"] = names["positional_embedding"][0]
    return prefixed("visual.", names | {"proj": torch.zeros(96, 24)}) | TEXT


def hf_maps(model: nn.Module, prefix: int) -> Reference:
    """Maps after each block, of hidden states without the first `prefix` tokens."""

    def maps(x: Tensor) -> list[Tensor]:
        hidden = model(x, output_hidden_states=True).hidden_states[1:]
        return [tokens[:, prefix:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in hidden]

    return maps


def hf_clip() -> tuple[State, Reference]:
    config = transformers.CLIPVisionConfig(**CLIP_SIZES, image_size=64, patch_size=16, projection_dim=24)
    model = seeded(lambda: transformers.CLIPVisionModelWithProjection(config))
    return model.state_dict(), hf_maps(model, 1)


def hf_siglip() -> tuple[State, Reference]:
    config = transformers.SiglipVisionConfig(**CLIP_SIZES, image_size=64, patch_size=16)
    model = seeded(lambda: transformers.SiglipVisionModel(config))
    return model.state_dict(), hf_maps(model, 0)


def hf_vit() -> tuple[State, Reference]:
    config = transformers.ViTConfig(**CLIP_SIZES, image_size=64, patch_size=16)
    model = seeded(lambda: transformers.ViTModel(config, add_pooling_layer=False))
    return model.state_dict(), hf_maps(model, 1)


def hf_registers() -> tuple[State, Reference]:
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
    )
    model = seeded(lambda: transformers.Dinov2WithRegistersModel(config))
    return model.state_dict(), hf_maps(model, 5)


SMALL = {name: CLIP_FIELDS[name] for name in ("dim", "depth", "heads", "image_size")}
IMAGE_TEXT = {
    "OpenCLIP": ours(CLIP, openai, fields=CLIP_FIELDS, layout="clip"),
    "OpenCLIP under DistributedDataParallel": ours(
        CLIP, lambda state: {"state_dict": prefixed("module.", openai(state))}, fields=CLIP_FIELDS, layout="clip"
    ),
    "OpenCLIP with a tower of timm": ours(
        VIT,
        lambda state: {"state_dict": prefixed("module.visual.trunk.", state) | zeros("module.logit_scale")},
        fields=TINY,
        container="module.visual.trunk",
    ),
    "transformers CLIP": PublishedFile(CLIP, hf_clip, CLIP_FIELDS, {"layout": "transformers-clip-quickgelu"}),
    "transformers SigLIP": PublishedFile("vit_base_patch16_224", hf_siglip, SMALL),
    "transformers ViT": PublishedFile("vit_base_patch16_224", hf_vit, SMALL),
    "transformers DINOv2 with registers": PublishedFile(
        "vit_small_patch14_reg4_dinov2", hf_registers, {**SMALL, "patch": 16, "norm_maps": False}
    ),
}
