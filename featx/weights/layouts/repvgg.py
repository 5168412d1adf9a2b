"""Layout of DingXiaoH/RepVGG, training and deployment form."""

from collections.abc import Collection

from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

TO_NATIVE: tuple[Rule, ...] = (
    (r"^stage0\.", "stem."),
    (r"^stage(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.rbr_dense\.", ".conv_kxk."),
    (r"\.rbr_1x1\.", ".conv_1x1."),
    (r"\.rbr_identity\.", ".identity."),
    (r"\.rbr_reparam\.", ".reparam_conv."),
    (r"\.se\.down\.", ".attn.fc1."),
    (r"\.se\.up\.", ".attn.fc2."),
    (r"^linear\.", "head.fc."),
)
FROM_NATIVE: tuple[Rule, ...] = (
    (r"^stem\.", "stage0."),
    (r"^stages\.(\d+)\.", lambda match: f"stage{int(match[1]) + 1}."),
    (r"\.conv_kxk\.", ".rbr_dense."),
    (r"\.conv_1x1\.", ".rbr_1x1."),
    (r"\.identity\.", ".rbr_identity."),
    (r"\.reparam_conv\.", ".rbr_reparam."),
    (r"\.attn\.fc1\.", ".se.down."),
    (r"\.attn\.fc2\.", ".se.up."),
    (r"^head\.fc\.", "linear."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, TO_NATIVE)


def from_native(state: State) -> StateDict:
    return rename_keys(state, FROM_NATIVE)


LAYOUTS = (Layout("repvgg", "RepVGG", has_keys(r"stage0\.rbr_(dense\.conv|reparam)\.weight$"), to_native, from_native),)
