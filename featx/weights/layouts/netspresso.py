"""Layout of NetsPresso Trainer's MobileViT: a classification model, with the backbone in `backbone.`, or the backbone.

Inside the transformer blocks, names follow transformers, and query, key and value are separate layers. The classifier
is the last layer in `head.classifier`; a head with several layers is ignored, because MobileViT has one layer.
https://github.com/Nota-NetsPresso/netspresso-trainer
"""

import re
from collections.abc import Collection

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import RenamePair, State, StateDict, forward_rules, inverse_rules, rename_keys
from .cvnets import LAST_NORM, last_norms

BACKBONE = r"(?:backbone\.)?"
PAIRS: tuple[RenamePair, ...] = (
    ("^patch_embed.conv.block.", "^stem."),
    ("^encoder.blocks.", "^stages."),
    (".block.0.block.", ".conv1_1x1."),
    (".block.1.block.", ".conv2_kxk."),
    (".block.2.block.", ".conv3_1x1."),
    (".local_rep.0.block.", ".conv_kxk."),
    (".local_rep.1.block.conv.", ".conv_1x1."),
    (".proj.block.", ".conv_proj."),
    (".fusion.block.", ".conv_fusion."),
    ("^conv_1x1_exp.block.", "^final_conv."),
    (".norm.", ".bn."),
    (".global_rep.#.layernorm_before.", ".transformer.#.norm1."),
    (".global_rep.#.token_mixer.qkv.", ".transformer.#.attn.qkv."),
    (".global_rep.#.token_mixer.linear.", ".transformer.#.attn.proj."),
    (".global_rep.#.layernorm_after.", ".transformer.#.norm2."),
    (".global_rep.#.channel_mlp.ffn.dense1.", ".transformer.#.mlp.fc1."),
    (".global_rep.#.channel_mlp.ffn.dense2.", ".transformer.#.mlp.fc2."),
)
# the classifier, after a dropout without tensors
HEAD: RenamePair = ("^head.classifier.1.", "^head.fc.")
MIXED = ("query", "key", "value")


def _to_native(state: State, _: Collection[str]) -> StateDict:
    head = [name for name in state if re.match(r"head\.classifier\.(\d+\.)?weight$", name)]
    loadable = {name: tensor for name, tensor in state.items() if len(head) < 2 or not name.startswith("head.")}
    table = [(f"^{BACKBONE}", ""), *forward_rules(PAIRS), LAST_NORM, (r"^head\.classifier\.(\d+\.)?", "head.fc.")]
    return rename_keys(fuse_projections(loadable, MIXED), table)


def _from_native(state: State) -> StateDict:
    table = [*last_norms(state), *inverse_rules((*PAIRS, HEAD)), (r"^(?!head\.)", "backbone.")]
    return split_projections(rename_keys(state, table), MIXED)


LAYOUTS = (
    Layout(
        system="netspresso",
        family="MobileViT",
        recognizes=has_keys(
            rf"{BACKBONE}patch_embed\.conv\.block\.conv\.", rf"{BACKBONE}encoder\.blocks\.0\.0\.block\.0\."
        ),
        to_native=_to_native,
        from_native=_from_native,
        data=IMAGENET,
    ),
)
