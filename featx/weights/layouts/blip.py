"""Layout of BLIP's image encoder in the checkpoint of the full image-text model.

It is a ViT with native names under the prefix `visual_encoder.`, without a classifier (num_classes=0). BLIP
interpolates positions without antialiasing. https://github.com/salesforce/BLIP
"""

import re
from collections.abc import Collection

from ...errors import CheckpointError
from ...preprocessing import CLIP
from ..layout import Layout, has_keys
from ..state_dict_keys import State, StateDict, rename_keys

ENCODER = r"visual_encoder\."
TENSORS = r"(cls_token|pos_embed|(patch_embed\.proj|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])|norm)\..*)$"


def _to_native(state: State, _: Collection[str]) -> StateDict:
    return rename_keys(state, [(f"^{ENCODER}", "")])


def _from_native(state: State) -> StateDict:
    """Convert to BLIP's names; CheckpointError for tensors that BLIP's encoder lacks."""
    unsupported = [name for name in state if not re.match(TENSORS, name)]
    if unsupported:
        raise CheckpointError(
            f"BLIP's image encoder has no place for {unsupported[:5]}{' and more' if unsupported[5:] else ''}: it is a "
            "ViT without classifier (num_classes=0), registers or layer scale"
        )
    return {f"visual_encoder.{name}": tensor for name, tensor in state.items()}


LAYOUTS = (
    Layout(
        system="blip",
        family="ViT",
        recognizes=has_keys(
            f"{ENCODER}cls_token$", rf"{ENCODER}patch_embed\.proj\.", rf"{ENCODER}blocks\.0\.attn\.qkv\."
        ),
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
