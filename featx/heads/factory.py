"""`create_segmenter` and `create_detector`: networks from the names of a head and a backbone, with their weights.

Settings of a head that its tensors do not show are read from the `config.json` beside the weights.
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
    """Create a network for semantic segmentation: images (N, in_chans, H, W) to logits (N, num_classes, H, W).

    Args:
        head: "deeplabv3", "pspnet" or "linear" as in their papers, or a configuration such as
            `DeepLabV3Config(chs=512)`. Its input is the deepest map; in MobileViT, the map before the expansion.
        backbone: any name that `create_model` accepts.
        pretrained: load the backbone's published weights. The head's weights are random.
        num_classes: number of classes.
        output_stride: as for `create_model`.
        aux_head: add a second head on the previous level, which contributes to the training loss.
        align_corners: how logits are resized to the image. None: as in the program that wrote the weights; False for
            featx weights.
        checkpoint_path: weights of the complete network, as for `create_model`: featx's, CVNets' or those of
            transformers' `MobileViT(V2)ForSemanticSegmentation`. A classifier with another number of classes stays
            random. With a transformers `config.json`, `output_stride` defaults to its value, and atrous rates that
            differ from it are refused.
        in_chans: channels of the images, as for `create_model`.
        arguments: further arguments of `create_model`.

    Raises:
        ArgumentError: the head or an argument is invalid.
        CheckpointError: the weights do not fit.
        FeatxError: any other error of `create_model`.
    """
    cfg = _config(head, SEGMENTATION)
    require_classes(num_classes, fewest=1)
    options, arch = LoadOptions.split({**arguments, "checkpoint_path": checkpoint_path}, pretrained)
    description = read_description(checkpoint_path, options.cache_dir)
    description.require(cfg)
    stride = description.output_stride if output_stride is None else output_stride
    defaults = {"output_stride": stride, "in_chans": in_chans, **arch}

    def build(settings: Mapping[str, Any]) -> Segmenter:
        settings = {**defaults, **settings}
        aligned = settings.pop("align_corners", align_corners or False)
        model = _backbone(backbone, options, settings)
        deepest = _dense_position(model)
        extractor = FeatureExtractWrapper(model, [deepest - 1, deepest] if aux_head and deepest else [deepest])
        aux = AuxiliaryHead(extractor.feature_info, num_classes) if aux_head else None
        return Segmenter(extractor, cfg.build(extractor.feature_info, num_classes), aux, align_corners=aligned)

    explicit = {**arch, **({} if align_corners is None else {"align_corners": align_corners})}
    model = _build_and_load(build, explicit, options, resized=("head.classifier.", "aux.classifier."))
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
    """Create a network for object detection, with the interface of torchvision's detectors (`featx.heads.ssd.SSD`).

    Args:
        head: "ssd" as in CVNets, or a configuration such as `SSDConfig(size=(512, 512))`.
        backbone: any name that `create_model` accepts whose maps include the head's strides, 16 and 32 by default.
        pretrained: load the backbone's published weights. The head's weights are random.
        num_classes: number of classes including the background, which is class 0: 81 for COCO.
        checkpoint_path: weights of the complete network, as for `create_model`: featx's or CVNets'. The prediction
            layers stay random if the number of classes differs.
        in_chans: channels of the images, as for `create_model`.
        arguments: further arguments of `create_model`.

    Raises:
        ArgumentError: the head or an argument is invalid.
        OutIndicesError: the backbone has no map of a stride that the head needs.
        FeatxError: any other error of `create_model`.
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

    return _build_and_load(build, arch, options, resized=("head.predictions.",))


def _config(head: str | Config, table: Mapping[str, Config]) -> Config:
    if not isinstance(head, str):
        return head
    if head not in table:
        raise ArgumentError(f"there is no head {head!r}: choose one of {list(table)}, or pass a configuration")
    return table[head]


def _backbone(name: str, options: LoadOptions, settings: Mapping[str, Any]) -> nn.Module:
    return create_model(name, options.pretrained, cache_dir=options.cache_dir, mmap=options.mmap, **settings)


def _dense_position(model: nn.Module) -> int:
    """Position, among all levels of the model, of the level that dense prediction uses."""
    return len(FeatureExtractWrapper(model).feature_info) + getattr(model, "dense_level", -1)


def _build_and_load(
    build: Callable[[Mapping[str, Any]], Model],
    explicit: Mapping[str, Any],
    options: LoadOptions,
    resized: tuple[str, ...],
) -> Model:
    """Build the model and load its checkpoint, if any. Settings that are not explicit default to the checkpoint's.

    Published weights are the backbone's; `build` loads them.
    """
    model, device, dtype = build({}), options.device, options.dtype
    if options.checkpoint_path is not None:
        checkpoint = open_checkpoint(options.checkpoint_path, full_keys(model), family_names(model), options)
        defaults = checkpoint.layout.settings if checkpoint.layout else {}
        if settings := {name: value for name, value in defaults.items() if name not in explicit}:
            model = build(settings)
        tensors, report = fit_tensors(model, _without_aux(model, checkpoint), resized=resized, dtype=dtype)
        assign_tensors(model, tensors, device=device, dtype=dtype, copy=checkpoint.borrowed)
        model.load_report = report
    move_model(model, device, dtype)
    return model


def _without_aux(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without its auxiliary head if the model has none: only training uses it."""
    if getattr(model, "aux", None) is not None:
        return checkpoint
    left_out = {name: "of the auxiliary head: aux_head=True" for name in checkpoint.state if name.startswith("aux.")}
    state = {name: tensor for name, tensor in checkpoint.state.items() if name not in left_out}
    return replace(checkpoint, state=state, skipped={**checkpoint.skipped, **left_out})


@dataclass(frozen=True, slots=True)
class Description:
    """transformers' configuration of a segmentation network; empty without one."""

    config: Mapping[str, Any]

    @property
    def output_stride(self) -> int | None:
        """The output stride that the network was trained with."""
        return self.config.get("output_stride")

    def label_names(self, num_classes: int) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty unless each of `num_classes` has one."""
        labels = {int(number): str(name) for number, name in self.config.get("id2label", {}).items()}
        names = {number: name for number, name in labels.items() if name != f"LABEL_{number}"}  # a placeholder
        return tuple(names[number] for number in range(num_classes)) if {*names} == {*range(num_classes)} else ()

    def require(self, head: object) -> None:
        """CheckpointError if the weights were trained with other atrous rates, which the tensors do not show."""
        rates = tuple(self.config.get("atrous_rates", ()))
        if rates and isinstance(head, DeepLabV3Config) and tuple(head.atrous_rates) != rates:
            raise CheckpointError(
                f"config.json says that these weights have atrous_rates={rates}, not {head.atrous_rates}: pass "
                f"DeepLabV3Config(atrous_rates={rates})"
            )


def read_description(weights: Weights | None, cache_dir: str | Path | None) -> Description:
    """Read the `config.json` beside weights in a folder or a Hub repository. CheckpointError if it is unreadable."""
    if weights is None or isinstance(weights, Mapping):
        return Description({})
    source = str(weights)
    if not source.startswith(HUB) and not Path(source.removeprefix(FOLDER)).is_dir():
        return Description({})
    try:
        config = config_of(source, cache_dir)
    except WeightsNotFoundError:
        return Description({})
    return Description(config if config.get("model_type") in MODEL_TYPES else {})
