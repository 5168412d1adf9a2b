"""What is asked for: a Recipe decides the numbers, Resources how fast and where they are computed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from ..colour_profile import COLOR_MANAGEMENT, ColorManagement
from ..errors import ArgumentError

Pooling = Literal["none", "mean", "max", "gem", "cls"]
Runtime = Literal["plain", "eager", "onednn"]
# Fields of a Recipe with the values that folders go by which were made before there were these fields. They are left
# out of what is decided, so that such a folder is one of the same extraction still.
BEFORE: Mapping[str, object] = {"color_management": "none", "allow_truncated": False}
LONGEST_TIMEOUT = 86_400  # seconds
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the numbers, beside the model and its weights.

    pooling: one for all levels, or one per level: "none" keeps maps (chs, h, w), the others give vectors (chs,):
        "mean", "max" and "gem" (generalised mean, p = 3) over cells, "cls" a transformer's class token.
    dtype: of what is stored: "float32", "float16" or "bfloat16".
    size: pixels of the square that images are resized and cropped to; None is what the weights expect.
    keep_aspect: the whole image at its own aspect instead, its shorter side resized to `size`.
    scaled_decode: JPEGs may be decoded at a half, a quarter or an eighth where at least twice the pixels needed remain.
    runtime: "plain" is the model as it is; "eager" and "onednn" are those of `featx.optimize`.
    color_management: "srgb" converts images with an ICC profile of other colours to sRGB; "none" takes their numbers as
        they are stored, as torchvision and timm do.
    allow_truncated: a JPEG that is cut short is the part that is there, and gray below it, and has not failed.

    Raises ArgumentError for values that are none of these.
    """

    pooling: Pooling | tuple[Pooling, ...] = "none"
    dtype: str = "float32"
    size: int | None = None
    keep_aspect: bool = False
    scaled_decode: bool = False
    runtime: Runtime = "plain"
    color_management: ColorManagement = "srgb"
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        given = (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)
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

    def poolings(self, levels: int) -> tuple[Pooling, ...]:
        """One pooling per level; ArgumentError if it was given for another number of levels."""
        if isinstance(self.pooling, str):
            return (self.pooling,) * levels
        if len(self.pooling) != levels:
            raise ArgumentError(f"pooling={self.pooling}: expected one for all levels, or one for each of {levels}")
        return self.pooling


@dataclass(frozen=True, slots=True)
class Resources:
    """What may differ when an extraction goes on: it changes how fast numbers come, beyond the last digits not which.

    batch_size: images the model sees at once; None measures which is fastest. It halves where memory runs out.
    device: where the model runs. workers: decoders at once, None is one per core.
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
    device: str = "cpu"
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
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise ArgumentError(f"device={self.device!r}: {str(error).splitlines()[0]}") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ArgumentError(f"device={self.device!r}: there is no GPU that PyTorch can use here")

    def settled(self) -> "Resources":
        """These with what this machine decides filled in."""
        streams = 2 if torch.device(self.device).type != "cpu" else min(4, torch.get_num_threads())
        return replace(self, workers=self.workers or usable_cores(), streams=self.streams or streams)


def usable_cores() -> int:
    """Cores this process may run on, which are fewer than the machine's inside a container or a job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
