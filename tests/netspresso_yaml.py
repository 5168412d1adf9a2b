"""Configurations as NetsPresso Trainer writes them."""

from typing import Any

PARAMS = {
    "patch_size": 2,
    "num_attention_heads": 4,
    "attention_dropout_prob": 0.1,
    "ffn_dropout_prob": 0.0,
    "output_expansion_ratio": 4,
    "use_fusion_layer": True,
}


def backbone() -> dict[str, Any]:
    """What NetsPresso writes for mobilevit_xxs."""
    mv2 = [
        {"block_type": "mv2", "out_channels": chs, "num_blocks": depth, "stride": stride, "ir_expansion_ratio": 2}
        for chs, depth, stride in ((16, 1, 1), (24, 3, 2))
    ]
    mobilevit = [
        {
            "block_type": "mobilevit",
            "out_channels": chs,
            "num_blocks": depth,
            "stride": 2,
            "attention_channels": dim,
            "ffn_intermediate_channels": 2 * dim,
            "dilate": False,
            "ir_expansion_ratio": 2,
        }
        for chs, depth, dim in ((48, 2, 64), (64, 4, 80), (80, 3, 96))
    ]
    return {"name": "mobilevit", "params": dict(PARAMS), "stage_params": mv2 + mobilevit}
