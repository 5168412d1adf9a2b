"""What is asked for: a Recipe decides the numbers, Resources how fast and where they are computed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

import torch

from ..colour_profile import COLOR_MANAGEMENT, ColorManagement
from ..errors import ArgumentError
from ..spelling import closest

Pooling = Literal["none", "mean", "max", "gem", "cls", "pre_logits"]
Runtime = Literal["plain", "eager", "onnxruntime", "openvino", "auto"]
# Fields of a Recipe with the values that folders go by which were made before there were these fields. They are left
# out of what is decided, so that such a folder is one of the same extraction still.
BEFORE: Mapping[str, object] = {"color_management": "none", "allow_truncated": False}
LONGEST_TIMEOUT = 86_400  # seconds
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def short_repr(given: Any) -> str:
    """The class and the fields that have another value than their default, as `repr` of a dataclass shows them."""
    shown = [(field.name, getattr(given, field.name)) for field in fields(given)]
    others = [
        f"{name}={value!r}" for (name, value), field in zip(shown, fields(given), strict=True) if value != field.default
    ]
    return f"{type(given).__name__}({', '.join(others)})"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the numbers, beside the model and its weights.

    pooling: one for all levels, or one per level: "none" keeps maps (chs, h, w), the others give vectors (chs,):
        "mean", "max" and "gem" (generalised mean, p = 3) over cells, "cls" a transformer's class token. "pre_logits",
        which stands alone, is what enters the classifier's last linear layer: `forward_head(..., pre_logits=True)`.
    dtype: of what is stored, by name or as a torch.dtype: "float32", "float16" or "bfloat16".
    size: pixels of the square that images are resized and cropped to; None is what the weights expect.
    keep_aspect: the whole image at its own aspect instead, its shorter side resized to `size`.
    scaled_decode: JPEGs may be decoded at a half, a quarter or an eighth where at least twice the pixels needed remain.
    runtime: "plain" is the model as it is; "eager", "onnxruntime" and "openvino" are those of `featx.optimize`. "auto"
        is the one that a folder was begun with, and in a new folder the fastest on this machine, which is recorded.
    color_management: "srgb" converts images with an ICC profile of other colours to sRGB; "none" takes their numbers as
        they are stored, as torchvision and timm do.
    allow_truncated: a JPEG that is cut short is the part that is there, and gray below it, and has not failed.
    norm: whether maps and class tokens of a vision transformer go through its last norm before they are pooled, as with
        timm's `forward_intermediates(norm=True)`. None is True with the pooling "cls", which then is the token that a
        classifier sees, and False without.

    Raises ArgumentError for values that are none of these.
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
        given = (self.pooling,) if isinstance(self.pooling, str) else self.pooling
        for what, value, known in (
            *(("pooling", one, get_args(Pooling)) for one in given),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("runtime", self.runtime, get_args(Runtime)),
            ("color_management", self.color_management, COLOR_MANAGEMENT),
        ):
            if value not in known:
                raise ArgumentError(f"{what}={value!r}: choose one of {known}")
        if self.size is not None and self.size < 1:
            raise ArgumentError(f"size={self.size}: expected a positive number of pixels")
        if "pre_logits" in given and len(given) > 1:
            raise ArgumentError(f"pooling={self.pooling}: 'pre_logits' is of the whole model and stands alone")
        if self.norm and "pre_logits" in given:
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
        """Whether maps and class tokens go through the last norm."""
        return self.takes_tokens if self.norm is None else self.norm

    def poolings(self, levels: int) -> tuple[Pooling, ...]:
        """One pooling per level; ArgumentError if it was given for another number of levels."""
        if isinstance(self.pooling, str):
            return (self.pooling,) * levels
        if len(self.pooling) != levels:
            raise ArgumentError(f"pooling={self.pooling}: expected one for all levels, or one for each of {levels}")
        return tuple(self.pooling)


@dataclass(frozen=True, slots=True)
class Resources:
    """What may differ when an extraction goes on: it changes how fast numbers come, beyond the last digits not which.

    batch_size: images the model sees at once; None measures which is fastest. It halves where memory runs out.
    device: where the model runs; "auto" is the accelerator that PyTorch finds (cuda, mps or xpu), or else the CPU.
    workers: decoders at once, None is one per core.
    decoders: "threads", or "processes", which survive a decoder that crashes and are slower to start.
    streams: batches the model runs on at once; None is as many as PyTorch may use threads, up to four, each on its
        share of them, because threads that work on one batch wait for each other; two on a GPU, so that one batch
        is prepared while the other runs.
    decode_timeout: seconds after which an image has failed whose decoder has not finished; the process that decodes it
        is ended then, so that decoders="processes" is needed. None waits for ever.
    max_pixels: the most pixels an image may have, larger ones have failed; None is Pillow's limit, 178,956,970.

    Raises ArgumentError for values that are none of these.
    """

    batch_size: int | None = 16
    device: str = "auto"
    workers: int | None = None
    decoders: Literal["threads", "processes"] = "threads"
    streams: int | None = None
    decode_timeout: float | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for what in ("batch_size", "workers", "streams", "max_pixels"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ArgumentError(f"{what}={value}: expected a positive number")
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
        """These with what this machine decides filled in."""
        device = accelerator() if self.device == "auto" else self.device
        kind = torch.device(device).type
        streams = {"cpu": min(4, torch.get_num_threads()), "mps": 1}.get(kind, 2)
        workers = self.workers or usable_cores()
        return replace(self, device=device, workers=workers, streams=self.streams or streams)


class RecipeFields(TypedDict, total=False):
    """The fields of a Recipe as keywords."""

    pooling: Pooling | Sequence[Pooling]
    dtype: torch.dtype | str
    size: int | None
    keep_aspect: bool
    scaled_decode: bool
    runtime: Runtime
    color_management: ColorManagement
    allow_truncated: bool
    norm: bool | None


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


def parted(
    recipe: Recipe | None, resources: Resources | None, given: Mapping[str, Any], others: Sequence[str] = ()
) -> tuple[Recipe, Resources]:
    """The Recipe and the Resources, each as it is or made of its fields among the keywords `given`.

    others: keywords that the function has beside these, for the hint. Raises ArgumentError for a keyword that is no
    field, and for fields beside the object that has them.
    """
    known = {field.name for kind in (Recipe, Resources) for field in fields(kind)}
    for name in given:
        if name not in known:
            near = " or ".join(closest(name, [*known, *others], 2))
            raise ArgumentError(f"there is no argument {name!r}" + (f": did you mean {near}?" if near else ""))
    return _made(Recipe, "recipe", recipe, given), _made(Resources, "resources", resources, given)


def _made(kind: Any, argument: str, whole: Any, given: Mapping[str, Any]) -> Any:
    own = {field.name: given[field.name] for field in fields(kind) if field.name in given}
    if whole is None:
        return kind(**own)
    if not isinstance(whole, kind):
        raise ArgumentError(f"{argument}={whole!r}: expected a featx.bulk.{kind.__name__}")
    if own:
        changed = ", ".join(f"{name}={value!r}" for name, value in own.items())
        raise ArgumentError(
            f"{', '.join(own)} beside {argument}=, which has that too: pass {argument}=dataclasses.replace({argument}, "
            f"{changed})"
        )
    return whole


def accelerator() -> str:
    """The kind of device of this machine that PyTorch computes on fastest."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _require_device(name: str) -> None:
    """ArgumentError for a device that does not exist, or is not there."""
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
    """Cores this process may run on, which are fewer than the machine's inside a container or a job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
