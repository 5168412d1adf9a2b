"""Layout of Keras's ConvNeXts (keras.applications), whose layers compute as the native ones do.

Names start with that of the model, such as "convnext_tiny_". Kernels are (height, width, in, out), and (in, out) in the
MLPs. The variable of a layer scale has no fixed name.
https://github.com/keras-team/keras/blob/master/keras/src/applications/convnext.py
"""

from collections.abc import Collection

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys
from .keras import DENSE, weight

MODEL = r"^(?:.*/)?(?:\w+?_)?"  # groups, and the name of the model
BLOCK = rf"{MODEL}stage_(\d)_block_(\d+)"
RULES: tuple[Rule, ...] = (
    (r"/kernel$", "/weight"),
    (r"(norm|normalization)((?:_\d+)?)/gamma$", r"\1\2/weight"),
    (r"/beta$", "/bias"),
    (rf"{MODEL}stem_conv/", "stem.0."),
    (rf"{MODEL}stem_layernorm/", "stem.1."),
    *((rf"{MODEL}downsampling_layernorm_{i}/", f"stages.{i + 1}.downsample.0.") for i in range(3)),
    *((rf"{MODEL}downsampling_conv_{i}/", f"stages.{i + 1}.downsample.1.") for i in range(3)),
    (rf"{BLOCK}_depthwise_conv/", r"stages.\1.blocks.\2.conv_dw."),
    (rf"{BLOCK}_layernorm/", r"stages.\1.blocks.\2.norm."),
    (rf"{BLOCK}_pointwise_conv_(\d)/", r"stages.\1.blocks.\2.mlp.fc\3."),
    (rf"{BLOCK}_layer_scale/\w+$", r"stages.\1.blocks.\2.gamma"),
    (rf"{MODEL}head_layernorm/", "head.norm."),
    (rf"{MODEL}head_dense/|^{DENSE}", "head.fc."),
    (r"^layer_normalization(?:_\d+)?/", "head.norm."),  # of models without a classifier
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert Keras's names and kernels."""
    dense = {name: weight(tensor) if name.endswith("/kernel") else tensor for name, tensor in state.items()}
    return rename_keys(dense, RULES)


LAYOUTS = (
    Layout(
        "keras",
        "ConvNeXt",
        has_keys(rf"{MODEL}stem_conv/kernel$", rf"{BLOCK}_depthwise_conv/kernel$"),
        to_native,
        ignores={r"(\w+_)?prestem_normalization/": "preprocessing that is a part of Keras's model"},
        data=IMAGENET,
    ),
)
