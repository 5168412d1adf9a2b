"""Tiny models of every type in transformers, and what the package itself returns for them."""

from functools import cache

import pytest
import torch
from conftest import randomize

from featx import FeatureExtractWrapper
from featx.bridges import transformers as bridge

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CLIP = {**VIT, "intermediate_size": 32}
CONVS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}

SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
}

SEG = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
SAM = {**VIT, "window_size": 2, "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 32, "num_pos_feats": 4}
SAM3_VIT = {**CLIP, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 32}

HIERA_DET = {
    "hidden_size": 12,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [12, 24, 48, 96],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 4],
    "image_size": [128, 128],
    "global_attention_blocks": [3],
}

# A small configuration of every type, and the size of its images.
BACKBONES = {
    "beit": ({**VIT, "intermediate_size": 32}, 32),
    "bit": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_groups": 4}, 64),
    "convnext": (CONVS, 64),
    "convnextv2": (CONVS, 64),
    "dinov2": (VIT, 32),
    "dinov2_with_registers": (VIT, 32),
    "dinov3_convnext": (CONVS, 64),
    "dinov3_vit": ({**CLIP, "num_register_tokens": 2}, 32),
    "focalnet": ({"embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [1, 1],
                  "focal_windows": [3, 3], "image_size": 32}, 32),
    "hgnet_v2": ({}, 64),
    "hiera": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]}, 64),
    "lw_detr_vit": ({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
                     "patch_size": 8, "num_windows": 4, "pretrain_image_size": 64}, 64),
    "maskformer-swin": (SWIN, 32),
    "pixio": (VIT, 32),
    "pp_lcnet": ({}, 64),
    "pp_lcnet_v3": ({}, 64),
    "pvt_v2": ({"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
                "image_size": 64}, 64),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, 64),
    "rf_detr_dinov2": ({**VIT, "num_windows": 1}, 32),
    "rt_detr_resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, 64),
    "sapiens2": ({**CLIP, "num_key_value_attention_heads": 2}, 32),
    "swin": (SWIN, 32),
    "swinv2": (SWIN, 32),
    "textnet": ({"image_size": [64, 64]}, 64),
    "tipsv2_vision_model": (VIT, 32),
    "uvdoc_backbone": ({}, 64),
    "vitdet": ({**VIT, "window_size": 0, "pretrain_image_size": 32}, 32),
    "vitpose_backbone": ({**VIT, "image_size": [32, 24]}, (32, 24)),
}  # fmt: skip

ENCODERS = {
    "aimv2_vision_model": (CLIP, 32),
    "blip_vision_model": (CLIP, 32),
    "chinese_clip_vision_model": (CLIP, 32),
    "clip_vision_model": (CLIP, 32),
    "cvt": ({"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, 64),
    "data2vec-vision": (CLIP, 32),
    "deit": (CLIP, 32),
    "donut-swin": (SWIN, 32),
    "dpt": ({**CLIP, "backbone_out_indices": [0, 1, 1, 1]}, 32),
    "efficientnet": ({"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 64),
    "glpn": (SEG, 64),
    "ijepa": (CLIP, 32),
    "internvl_vision": ({**CLIP, "image_size": [32, 32], "patch_size": [8, 8]}, 32),
    "levit": ({"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
               "key_dim": [8, 8, 8], "image_size": 64}, 64),
    "metaclip_2_vision_model": (CLIP, 32),
    "mlcd_vision_model": (CLIP, 32),
    "mobilenet_v1": ({"depth_multiplier": 0.25}, 64),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, 64),
    "mobilevit": ({"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32],
                   "image_size": 64}, 64),
    "mobilevitv2": ({"width_multiplier": 0.25, "image_size": 64}, 64),
    "poolformer": ({"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, 64),
    "pvt": ({**SEG, "image_size": 64}, 64),
    "qianfan_ocr_vision": ({**CLIP, "image_size": [32, 32], "patch_size": [8, 8]}, 32),
    "radio": ({**VIT, "num_cls_tokens": 2, "num_registers": 2, "max_img_size": 64}, 32),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "groups_width": 8}, 64),
    "sam2_hiera_det_model": (HIERA_DET, 128),
    "sam2_vision_model": ({"backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA_DET},
                           "backbone_channel_list": [96, 48, 24, 12], "fpn_hidden_size": 8}, 128),
    "sam3_vision_model": ({"backbone_config": {"model_type": "sam3_vit_model", **SAM3_VIT},
                           "fpn_hidden_size": 8}, 32),
    "sam3_vit_model": (SAM3_VIT, 32),
    "sam_hq_vision_model": (SAM, 32),
    "sam_vision_model": (SAM, 32),
    "segformer": (SEG, 64),
    "siglip_vision_model": (CLIP, 32),
    "swiftformer": ({"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}, 64),
    "vit": (CLIP, 32),
    "vit_mae": (CLIP, 32),
    "vit_msn": (CLIP, 32),
}  # fmt: skip

EVERY = {**BACKBONES, **ENCODERS}


@cache
def model_of(kind):
    return randomize(bridge.build(kind, **EVERY[kind][0]))


@cache
def pyramid_of(kind):
    return bridge.pyramid(model_of(kind))


def extracted(source, x, *args, **kwargs):
    with torch.no_grad():
        return FeatureExtractWrapper(source, *args, **kwargs)(x)


def assert_same(ours, reference):
    assert [map_.shape for map_ in ours] == [map_.shape for map_ in reference]
    for a, b in zip(ours, reference, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
