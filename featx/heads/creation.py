"""create_segmenter and create_detector: a head by name on a backbone by name, with the weights of the whole.

The `config.json` beside a network's weights says of its head what the tensors do not show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError
from ..factory import create_model
from ..weights.checkpoint import Checkpoint, LoadOptions, Weights, open_checkpoint
from ..weights.download import FOLDER, HUB, config_of
from ..weights.load import assign_tensors, family_names, fit_tensors, full_keys, move_model
from ..wrappers import FeatureExtractWrapper
from .dense import AuxiliaryHead, DeepLabV3Config, LinearConfig, PSPNetConfig, SegmentationConfig, require_classes
from .segmenter import Segmenter
from .ssd_head import SSDConfig, level_at

if TYPE_CHECKING:
    from .ssd import SSD

MODEL_TYPES = ("mobilevit", "mobilevitv2")
SEGMENTATION: dict[str, SegmentationConfig] = {
    "deeplabv3": DeepLabV3Config(),
    "pspnet": PSPNetConfig(),
    "linear": LinearConfig(),
}
DETECTION = {"ssd": SSDConfig()}
Config = TypeVar("Config")
Model = TypeVar("Model", Segmenter, "SSD")


def create_segmenter(
    head: str | SegmentationConfig,
    backbone: str,
    pretrained: bool = False,
    *,
    num_classes: int,
    output_stride: int | None = None,
    aux_head: bool = False,
    align_corners: bool | None = None,
    checkpoint_path: Weights | None = None,
    in_chans: int | None = None,
    **arguments: Any,
) -> Segmenter:
    """A network for semantic segmentation: images (N, in_chans, H, W) to logits (N, num_classes, H, W).

    head: "deeplabv3", "pspnet" or "linear" as their papers have them, or a configuration, e.g.
        `DeepLabV3Config(chs=512)`. It takes the deepest map, in MobileViT the one before the expansion.
    backbone: any name `create_model` takes; `output_stride` and `arch` as there.
    pretrained: take the backbone's published weights; the head's are random.
    aux_head: put a second head on the level before, which counts in the loss of training.
    align_corners: how logits are resized to the image; by default as the program that wrote the weights does it, False
        for our own.
    checkpoint_path: weights of the whole network, see `create_model`; our own, or those of CVNets or of transformers'
        `MobileViT(V2)ForSemanticSegmentation`. A classifier of another number of classes stays random. Where there is
        transformers' `config.json`, output_stride is by default as it says, and other rates than it says are refused.

    The remaining arguments, and the errors, are those of `create_model`.
    """
    cfg = _config(head, SEGMENTATION)
    require_classes(num_classes, fewest=1)
    options, arch = LoadOptions.split({**arguments, "checkpoint_path": checkpoint_path}, pretrained)
    description = described(checkpoint_path, options.cache_dir)
    description.require(cfg)
    stride = description.output_stride if output_stride is None else output_stride
    chosen = {"output_stride": stride, "in_chans": in_chans, **arch}

    def build(settings: Mapping[str, Any]) -> Segmenter:
        settings = {**chosen, **settings}
        aligned = settings.pop("align_corners", align_corners or False)
        model = _backbone(backbone, options, settings)
        deepest = _dense_position(model)
        extractor = FeatureExtractWrapper(model, [deepest - 1, deepest] if aux_head and deepest else [deepest])
        aux = AuxiliaryHead(extractor.feature_info, num_classes) if aux_head else None
        return Segmenter(extractor, cfg.build(extractor.feature_info, num_classes), aux, align_corners=aligned)

    given = {**arch, **({} if align_corners is None else {"align_corners": align_corners})}
    model = _loaded(build, given, options, resized=("head.classifier.", "aux.classifier."))
    model.label_names = description.label_names(num_classes)
    return model


def create_detector(
    head: str | SSDConfig,
    backbone: str,
    pretrained: bool = False,
    *,
    num_classes: int,
    checkpoint_path: Weights | None = None,
    in_chans: int | None = None,
    **arguments: Any,
) -> "SSD":
    """A network for object detection, called as torchvision's: see `featx.heads.ssd.SSD`.

    head: "ssd" as CVNets has it, or a configuration, e.g. `SSDConfig(size=(512, 512))`.
    backbone: any name `create_model` takes whose maps have the strides that the head starts from, 16 and 32.
    num_classes: with the background, which is class 0: 81 for COCO.
    pretrained: take the backbone's published weights; the head's are random.
    checkpoint_path: weights of the whole network, see `create_model`; our own, or those of CVNets. What predicts stays
        random if the number of classes is another one.

    The remaining arguments, and the errors, are those of `create_model`; OutIndicesError if a stride is missing.
    """
    from .ssd import SSD

    cfg = _config(head, DETECTION)
    cfg.check()
    require_classes(num_classes, fewest=2)
    options, arch = LoadOptions.split({**arguments, "checkpoint_path": checkpoint_path}, pretrained)

    def build(settings: Mapping[str, Any]) -> "SSD":
        model = _backbone(backbone, options, {"in_chans": in_chans, **arch, **settings})
        levels = FeatureExtractWrapper(model).feature_info[: _dense_position(model) + 1]
        extractor = FeatureExtractWrapper(model, [level_at(levels, stride) for stride in cfg.backbone_strides])
        return SSD(extractor, num_classes, cfg)

    return _loaded(build, arch, options, resized=("head.predictions.",))


def _config(head: str | Config, table: Mapping[str, Config]) -> Config:
    if not isinstance(head, str):
        return head
    if head not in table:
        raise ArgumentError(f"there is no head {head!r}: choose one of {list(table)}, or pass a configuration")
    return table[head]


def _backbone(name: str, options: LoadOptions, settings: Mapping[str, Any]) -> nn.Module:
    return create_model(name, options.pretrained, cache_dir=options.cache_dir, mmap=options.mmap, **settings)


def _dense_position(model: nn.Module) -> int:
    """Position, among all levels of the model, of the one that dense prediction starts from."""
    return len(FeatureExtractWrapper(model).feature_info) + getattr(model, "dense_level", -1)


def _loaded(
    build: Callable[[Mapping[str, Any]], Model],
    given: Mapping[str, Any],
    options: LoadOptions,
    resized: tuple[str, ...],
) -> Model:
    """The model with the weights of a checkpoint, if any, and the settings of their program, if not given.

    The weights that are published are those of the backbone, which `build` has loaded.
    """
    model, device, dtype = build({}), options.device, options.dtype
    if options.checkpoint_path is not None:
        checkpoint = open_checkpoint(options.checkpoint_path, full_keys(model), family_names(model), options)
        asked = checkpoint.layout.settings if checkpoint.layout else {}
        if settings := {name: value for name, value in asked.items() if name not in given}:
            model = build(settings)
        tensors, report = fit_tensors(model, _without_aux(model, checkpoint), resized=resized, dtype=dtype)
        assign_tensors(model, tensors, device=device, dtype=dtype, copy=checkpoint.borrowed)
        model.load_report = report
    move_model(model, device, dtype)
    return model


def _without_aux(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without an auxiliary head if the model has none, since only training would use it."""
    if getattr(model, "aux", None) is not None:
        return checkpoint
    left_out = {name: "of the auxiliary head: aux_head=True" for name in checkpoint.state if name.startswith("aux.")}
    state = {name: tensor for name, tensor in checkpoint.state.items() if name not in left_out}
    return replace(checkpoint, state=state, skipped={**checkpoint.skipped, **left_out})


@dataclass(frozen=True, slots=True)
class Description:
    """transformers' configuration of a network for segmentation, empty if there is none."""

    config: Mapping[str, Any]

    @property
    def output_stride(self) -> int | None:
        """What the network was trained at."""
        return self.config.get("output_stride")

    def label_names(self, num_classes: int) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty if they are not stated for so many."""
        stated = {int(number): str(name) for number, name in self.config.get("id2label", {}).items()}
        names = {number: name for number, name in stated.items() if name != f"LABEL_{number}"}  # that is no name
        return tuple(names[number] for number in range(num_classes)) if {*names} == {*range(num_classes)} else ()

    def require(self, head: object) -> None:
        """Raise CheckpointError if the weights were trained in a head of other rates, which would go unnoticed."""
        rates = tuple(self.config.get("atrous_rates", ()))
        if rates and isinstance(head, DeepLabV3Config) and tuple(head.atrous_rates) != rates:
            raise CheckpointError(
                f"config.json says that these weights have atrous_rates={rates}, not {head.atrous_rates}: pass "
                f"DeepLabV3Config(atrous_rates={rates})"
            )


def described(weights: Weights | None, cache_dir: str | Path | None) -> Description:
    """What stands beside weights in a folder or a repository on the Hub; CheckpointError if it cannot be read."""
    if weights is None or isinstance(weights, Mapping):
        return Description({})
    where = str(weights)
    if not where.startswith(HUB) and not Path(where.removeprefix(FOLDER)).is_dir():
        return Description({})
    try:
        config = config_of(where, cache_dir)
    except WeightsNotFoundError:
        return Description({})
    return Description(config if config.get("model_type") in MODEL_TYPES else {})
