"""Configuration of an extraction: a Recipe determines the results, Resources the speed and the device."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

import torch

from ..color_profile import COLOR_MANAGEMENT, ColorManagement
from ..errors import ArgumentError
from ..spelling import closest

Pooling = Literal["none", "mean", "max", "gem", "cls", "pre_logits"]
Runtime = Literal["plain", "eager", "onnxruntime", "openvino", "auto"]
# Values of Recipe fields that older versions did not have. `decided` in meta.json omits fields with these values, so
# that folders of these versions can still be resumed.
LEGACY_DEFAULTS: Mapping[str, object] = {"color_management": "none", "allow_truncated": False}
LONGEST_TIMEOUT = 86_400  # seconds
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def short_repr(config: Any) -> str:
    """The `repr` of a dataclass, without the fields that have their default value."""
    values = [(field, getattr(config, field.name)) for field in fields(config)]
    changed = [f"{field.name}={value!r}" for field, value in values if value != field.default]
    return f"{type(config).__name__}({', '.join(changed)})"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that determine the stored values, besides the model and its weights.

    Args:
        pooling: one for all levels, or one per level. "none" stores maps (chs, h, w); the others store vectors (chs,):
            "mean", "max" and "gem" (generalized mean, p = 3) over the cells, "cls" the class token of a transformer.
            "pre_logits", which cannot be combined with others, is the input of the classifier's last linear layer:
            `forward_head(..., pre_logits=True)`.
        dtype: of the stored values, by name or as a torch.dtype: "float32", "float16" or "bfloat16".
        size: side in pixels of the square that images are resized and cropped to; None is the size that the weights
            expect.
        keep_aspect: use the whole image with its aspect ratio, and resize its shorter side to `size`.
        scaled_decode: allow decoding JPEGs at 1/2, 1/4 or 1/8 if at least twice the required pixels remain.
        runtime: "plain" runs the unmodified model; "eager", "onnxruntime" and "openvino" are runtimes of
            `featx.optimize`. "auto" is the runtime recorded in the folder; for a new folder, the fastest on this
            machine, which is then recorded.
        color_management: "srgb" converts images with another ICC profile to sRGB; "none" ignores profiles, as
            torchvision and timm do.
        allow_truncated: decode the existing part of a truncated JPEG, gray below it, instead of recording a failure.
        norm: apply the last norm of a vision transformer to maps and class tokens before pooling, as timm's
            `forward_intermediates(norm=True)`. None is True for the pooling "cls", which then is the classifier's
            input, and False otherwise.

    Raises:
        ArgumentError: a value is not one of these.
    """

    pooling: Pooling | Sequence[Pooling] = "none"
    dtype: str | torch.dtype = "float32"
    size: int | None = None
    keep_aspect: bool = False
    scaled_decode: bool = False
    runtime: Runtime = "plain"
    color_management: ColorManagement = "srgb"
    allow_truncated: bool = False
    norm: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if not isinstance(self.pooling, str):
            object.__setattr__(self, "pooling", tuple(self.pooling))
        poolings = (self.pooling,) if isinstance(self.pooling, str) else self.pooling
        for argument, value, known in (
            *(("pooling", pooling, get_args(Pooling)) for pooling in poolings),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("runtime", self.runtime, get_args(Runtime)),
            ("color_management", self.color_management, COLOR_MANAGEMENT),
        ):
            if value not in known:
                raise ArgumentError(f"{argument}={value!r}: choose one of {known}")
        if self.size is not None and self.size < 1:
            raise ArgumentError(f"size={self.size}: expected a positive number of pixels")
        if "pre_logits" in poolings and len(poolings) > 1:
            raise ArgumentError(f"pooling={self.pooling}: 'pre_logits' is of the whole model and stands alone")
        if self.norm and "pre_logits" in poolings:
            raise ArgumentError(
                "norm=True: the model's own head decides what is normed before its logits: leave it out"
            )

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def takes_tokens(self) -> bool:
        """Whether class tokens are stored."""
        return "cls" in (self.pooling, *self.pooling)

    @property
    def is_normed(self) -> bool:
        """Whether the last norm is applied to maps and class tokens."""
        return self.takes_tokens if self.norm is None else self.norm

    def poolings(self, levels: int) -> tuple[Pooling, ...]:
        """One pooling per level; ArgumentError if `pooling` has another number of levels."""
        if isinstance(self.pooling, str):
            return (self.pooling,) * levels
        if len(self.pooling) != levels:
            raise ArgumentError(f"pooling={self.pooling}: expected one for all levels, or one for each of {levels}")
        return tuple(self.pooling)


@dataclass(frozen=True, slots=True)
class Resources:
    """Settings that may change on resume: they affect speed, and results only up to rounding.

    Args:
        batch_size: images per batch; None measures the fastest. It is halved when memory runs out.
        device: where the model runs; "auto" is the accelerator that PyTorch finds (cuda, mps or xpu), or else the CPU.
        workers: images decoded concurrently; None is one per core.
        decoders: "threads", or "processes", which survive a crash of the decoder and start more slowly.
        streams: concurrent batches. None is min(4, torch.get_num_threads()) on a CPU, each with an equal share of the
            threads, because threads that work on one batch wait for each other; 2 on a GPU, so that one batch is
            prepared while the other runs; 1 on mps.
        decode_timeout: seconds after which an image fails if it is not decoded; its process is then killed, so this
            needs decoders="processes". None has no limit.
        max_pixels: images with more pixels fail; None is Pillow's limit, 178,956,970.

    Raises:
        ArgumentError: a value is not one of these.
    """

    batch_size: int | None = 16
    device: str = "auto"
    workers: int | None = None
    decoders: Literal["threads", "processes"] = "threads"
    streams: int | None = None
    decode_timeout: float | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for argument in ("batch_size", "workers", "streams", "max_pixels"):
            value = getattr(self, argument)
            if value is not None and value < 1:
                raise ArgumentError(f"{argument}={value}: expected a positive number")
        if self.decode_timeout is not None and not 0 < self.decode_timeout <= LONGEST_TIMEOUT:
            raise ArgumentError(f"decode_timeout={self.decode_timeout}: expected seconds, at most {LONGEST_TIMEOUT}")
        if self.decoders not in ("threads", "processes"):
            raise ArgumentError(f"decoders={self.decoders!r}: choose 'threads' or 'processes'")
        if self.decode_timeout is not None and self.decoders == "threads":
            raise ArgumentError("decode_timeout needs decoders='processes': a thread cannot be stopped")
        _require_device(self.device)

    def __repr__(self) -> str:
        return short_repr(self)

    def settled(self) -> "Resources":
        """A copy in which None and "auto" are replaced by this machine's defaults."""
        device = accelerator() if self.device == "auto" else self.device
        kind = torch.device(device).type
        streams = {"cpu": min(4, torch.get_num_threads()), "mps": 1}.get(kind, 2)
        workers = self.workers or usable_cores()
        return replace(self, device=device, workers=workers, streams=self.streams or streams)


class ImageFields(TypedDict, total=False):
    """The fields of a Recipe that determine a map, as keywords."""

    size: int | None
    keep_aspect: bool
    scaled_decode: bool
    runtime: Runtime
    color_management: ColorManagement
    allow_truncated: bool
    norm: bool | None


class RecipeFields(ImageFields, total=False):
    """The fields of a Recipe as keywords."""

    pooling: Pooling | Sequence[Pooling]
    dtype: torch.dtype | str


class ResourcesFields(TypedDict, total=False):
    """The fields of Resources as keywords."""

    batch_size: int | None
    device: str
    workers: int | None
    decoders: Literal["threads", "processes"]
    streams: int | None
    decode_timeout: float | None
    max_pixels: int | None


class Fields(RecipeFields, ResourcesFields, total=False):
    """The fields of a Recipe and of Resources as keywords."""


class VectorFields(ImageFields, ResourcesFields, total=False):
    """The fields of a Recipe and of Resources as keywords, for float32 vectors."""


def split_keywords(
    recipe: Recipe | None, resources: Resources | None, keywords: Mapping[str, Any], others: Sequence[str] = ()
) -> tuple[Recipe, Resources]:
    """The Recipe and the Resources: the objects that were passed, or new ones made of their fields in `keywords`.

    Args:
        recipe: None to make one of keywords.
        resources: None to make them of keywords.
        keywords: fields of both classes.
        others: further keywords of the calling function, for the hint about a misspelled one.

    Raises:
        ArgumentError: a keyword is not a field, or an object was passed together with one of its fields.
    """
    known = {field.name for kind in (Recipe, Resources) for field in fields(kind)}
    for name in keywords:
        if name not in known:
            near = " or ".join(closest(name, [*known, *others], 2))
            raise ArgumentError(f"there is no argument {name!r}" + (f": did you mean {near}?" if near else ""))
    return _from_keywords(Recipe, "recipe", recipe, keywords), _from_keywords(
        Resources, "resources", resources, keywords
    )


def _from_keywords(kind: Any, argument: str, config: Any, keywords: Mapping[str, Any]) -> Any:
    values = {field.name: keywords[field.name] for field in fields(kind) if field.name in keywords}
    if config is None:
        return kind(**values)
    if not isinstance(config, kind):
        raise ArgumentError(f"{argument}={config!r}: expected a featx.bulk.{kind.__name__}")
    if values:
        changed = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ArgumentError(
            f"{', '.join(values)} beside {argument}=, which has that too: pass "
            f"{argument}=dataclasses.replace({argument}, {changed})"
        )
    return config


def accelerator() -> str:
    """The type of this machine's accelerator, or "cpu"."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _require_device(name: str) -> None:
    """Raise ArgumentError for an unknown device, or one that this machine does not have."""
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device={name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cpu":
        return
    if device.type != accelerator():
        raise ArgumentError(f"device={name!r}: there is no GPU that PyTorch can use here: choose 'auto' or 'cpu'")
    if (device.index or 0) >= (count := torch.accelerator.device_count()):
        raise ArgumentError(f"device={name!r}: there are {count}, counted from 0")


def usable_cores() -> int:
    """Cores that this process may use; a container or a cluster job may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
