"""Files of programs for mobile networks: efficientnet-pytorch, tonylins' MobileNetV2, Keras."""

import re

from layouts.published_file import State, named, ours, without

ENDS = (
    (r"^conv_stem\.", "_conv_stem."),
    (r"^bn1\.", "_bn0."),
    (r"^conv_head\.", "_conv_head."),
    (r"^bn2\.", "_bn1."),
    (r"^classifier\.", "_fc."),
)
FIRST = ((r"\.bn2\.", "._bn2."), (r"\.bn1\.", "._bn1."), (r"\.conv_pw\.", "._project_conv."))
OTHERS = (
    *((rf"\.bn{k}\.", f"._bn{k - 1}.") for k in (1, 2, 3)),
    (r"\.conv_pw\.", "._expand_conv."),
    (r"\.conv_pwl\.", "._project_conv."),
)


def lukemelas(state: State) -> State:
    blocks = list(dict.fromkeys(name.split(".conv")[0] for name in state if re.match(r"blocks\.\d+\.\d+\.conv", name)))
    new = named(without(state, "blocks."), *ENDS)
    for number, block in enumerate(blocks):
        inside = {name: tensor for name, tensor in state.items() if name.startswith(f"{block}.")}
        new |= named(
            inside,
            (rf"^{re.escape(block)}\.", f"_blocks.{number}."),
            *(OTHERS if number else FIRST),
            (r"\.conv_dw\.", "._depthwise_conv."),
            (r"\.se\.conv_(reduce|expand)\.", r"._se_\1."),
        )
    return new


def tonylins(state: State) -> State:
    """A MobileNetV2 whose layers are numbered in each block, activations included."""
    blocks = list(dict.fromkeys(name.split(".conv")[0] for name in state if re.match(r"blocks\.\d+\.\d+\.conv", name)))
    ends = ((r"^conv_stem\.", "features.0.0."), (r"^bn1\.", "features.0.1."), (r"^conv_head\.", "conv.0."))
    new = named(without(state, "blocks."), *ends, (r"^bn2\.", "conv.1."))
    for number, block in enumerate(blocks):
        order = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
        inside = {name: tensor for name, tensor in state.items() if name.startswith(f"{block}.")}
        new |= named(
            inside,
            (rf"^{re.escape(block)}\.", f"features.{number + 1}.conv."),
            *((rf"\.{conv}\.", f".{3 * k}.") for k, conv in enumerate(order)),
            *((rf"\.bn{k + 1}\.", f".{3 * k + 1}.") for k in range(3)),
        )
    return new


MOBILE = {
    "lukemelas EfficientNet": ours("tf_efficientnet_b0", lukemelas, logits=True),
    "lukemelas EfficientNet-Lite": ours("tf_efficientnet_lite0", lukemelas, logits=True),
    "tonylins MobileNetV2": ours("mobilenetv2_035", tonylins, logits=True),
}
