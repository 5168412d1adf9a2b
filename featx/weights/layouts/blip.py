"""BLIP's image encoder, in the checkpoint of the whole model of images and texts.

It is a ViT under the names that ours has, behind `visual_encoder.`, without a classifier (num_classes=0). BLIP
interpolates positions without low-pass. https://github.com/salesforce/BLIP
"""

import re
from collections.abc import Collection

from ...errors import CheckpointError
from ...preprocessing import CLIP
from ..layout import Layout, has
from ..state_dict_keys import State, StateDict, renamed

ENCODER = r"visual_encoder\."
TENSORS = r"(cls_token|pos_embed|(patch_embed\.proj|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])|norm)\..*)$"


def _to_native(state: State, _: Collection[str]) -> StateDict:
    return renamed(state, [(f"^{ENCODER}", "")])


def _from_native(state: State) -> StateDict:
    """Raises CheckpointError for tensors that BLIP's encoder has no place for."""
    homeless = [name for name in state if not re.match(TENSORS, name)]
    if homeless:
        raise CheckpointError(
            f"BLIP's image encoder has no place for {homeless[:5]}{' and more' if homeless[5:] else ''}: it is a ViT "
            "without classifier (num_classes=0), registers or factors of residual branches"
        )
    return {f"visual_encoder.{name}": tensor for name, tensor in state.items()}


LAYOUTS = (
    Layout(
        system="blip",
        family="ViT",
        recognises=has(f"{ENCODER}cls_token$", rf"{ENCODER}patch_embed\.proj\.", rf"{ENCODER}blocks\.0\.attn\.qkv\."),
        to_native=_to_native,
        from_native=_from_native,
        data=CLIP,
        ignores={
            r"visual_encoder_m\.": "moving average of the image encoder, kept for pretraining",
            r"text_(encoder|decoder)(_m)?\.": "text model",
            r"(vision|text)_proj(_m)?\.": "projection to the space that images and texts share",
            r"(itm|cls)_head\.": "head of a task with texts",
            r"((image|text|idx)_queue|queue_ptr|ptr_queue|temp)$": "state of contrastive training",
        },
        settings={"antialias": False},
    ),
)
