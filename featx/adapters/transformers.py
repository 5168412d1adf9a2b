"""Backbones for the models of transformers (https://huggingface.co/docs/transformers): its AutoBackbone.

No model there takes a module: all build their backbone from a configuration, which `register` makes known.
"""

from typing import TYPE_CHECKING

from .source import require_package

if TYPE_CHECKING:
    from .transformers_backbone import FeatxBackbone, FeatxConfig

INSTALL = "pip install -U 'featx[transformers]'"


def register() -> "tuple[type[FeatxConfig], type[FeatxBackbone]]":
    """The configuration and the class of backbones that AutoConfig and AutoBackbone know as "featx" from now on.

    Configurations of models there check from then on, when they are made, that a backbone of featx gives the levels
    that the model takes, and choose them where `out_indices` were left out.

    Call it, as often as you like, before a model is built or loaded with `from_pretrained`. MissingPackageError if
    transformers is missing or older than 5.
    """
    require_package("transformers.backbone_utils", INSTALL)
    from transformers import AutoBackbone, AutoConfig

    from .transformers_backbone import FeatxBackbone, FeatxConfig, check_backbones

    AutoConfig.register(FeatxConfig.model_type, FeatxConfig, exist_ok=True)
    AutoBackbone.register(FeatxConfig, FeatxBackbone, exist_ok=True)
    check_backbones()
    return FeatxConfig, FeatxBackbone
