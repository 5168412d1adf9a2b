"""Backbones for the AutoBackbone of transformers (https://huggingface.co/docs/transformers).

The package's models do not accept a module: they build their backbone from a configuration, which `register` adds.
"""

from typing import TYPE_CHECKING

from .requirements import require_package

if TYPE_CHECKING:
    from .transformers_backbone import FeatxBackbone, FeatxConfig

INSTALL = "pip install -U 'featx[transformers]'"


def register() -> "tuple[type[FeatxConfig], type[FeatxBackbone]]":
    """Register featx backbones with AutoConfig and AutoBackbone under the model type "featx".

    Call it before a model is built or loaded with `from_pretrained`; repeated calls have no effect. Afterwards,
    configurations of the package's models check on creation that a featx backbone has the levels that the model needs,
    and select them if `out_indices` is not given.

    Returns:
        The classes of the configuration and the backbone.

    Raises:
        MissingPackageError: transformers is not installed, or older than 5.
    """
    require_package("transformers.backbone_utils", INSTALL)
    from transformers import AutoBackbone, AutoConfig

    from .transformers_backbone import FeatxBackbone, FeatxConfig, check_backbones

    AutoConfig.register(FeatxConfig.model_type, FeatxConfig, exist_ok=True)
    AutoBackbone.register(FeatxConfig, FeatxBackbone, exist_ok=True)
    check_backbones()
    return FeatxConfig, FeatxBackbone
