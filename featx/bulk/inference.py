"""Batched inference: from pixels to what is stored of every level, and the search for the fastest batch size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, FeatxError, InputError
from ..preprocessing import DataConfig
from ..runtime import optimize
from ..runtime.agreement import smooth_noise, takes
from ..runtime.backends.engine import EngineExtractor
from ..runtime.optimization import Runtime as Optimized
from ..runtime.optimized import OptimizedExtractor
from ..wrappers import FeatureExtractWrapper
from .config import DTYPES, Pooling, Recipe, Resources

GEM_POWER = 3.0  # Radenovic et al., https://arxiv.org/abs/1711.02512
GEM_LEAST = 1e-6  # what it replaces values below by, since it takes roots
MANY = 16  # images at once, where their number is yet to be measured
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_cpu")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENOUGH = 0.97  # of the least time per image that was seen; a smaller batch within it takes less memory
LONGEST = 2.0  # seconds of one batch, after which larger ones are not tried


def _gem(map_: Tensor) -> Tensor:
    """(n, chs, h, w) to (n, chs): the cube root of the mean cube, of positive values."""
    return map_.clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


OF_MAPS: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "none": lambda map_: map_,
    "mean": lambda map_: map_.mean((2, 3)),
    "max": lambda map_: map_.amax((2, 3)),
    "gem": _gem,
    "pre_logits": lambda map_: map_.flatten(1),  # one cell, see `PreLogits`
}


def pooled(returned: Tensor | tuple[Tensor, Tensor], pooling: Pooling) -> Tensor:
    """What is stored of a level: its map (n, chs, h, w), or (n, chs).

    returned: the map, or the pair of prefix tokens (n, tokens, chs) and map. ArgumentError for "cls" without tokens.
    """
    tokens, map_ = returned if isinstance(returned, tuple) else (None, returned)
    if pooling != "cls":
        return OF_MAPS[pooling](map_)
    if tokens is None or tokens.shape[1] == 0:
        raise ArgumentError(
            "pooling 'cls' takes a transformer's class token, and this extractor returns none: choose 'mean', or make "
            'it of a model with a class token and output="tokens"'
        )
    return tokens[:, 0]


def is_filled(images: int, batch_size: int, recipe: Recipe) -> bool:
    """Whether batches of so many images in all are filled up.

    Not of a few images, which would be slow, nor where they keep their aspect, so that most batches are of few.
    """
    return images >= batch_size and not recipe.keep_aspect


class Model:
    """An extractor on its device that takes lists of pixels. Several threads may call it at once.

    runtime: what runs it, never "auto". batch_size: images at once at most, halved, for good, when memory runs out; one
    until it is measured. fills: whether batches of fewer are
    filled up with copies. Numbers may differ in the last digits with the size of a batch, so that those of an image
    then do not depend on which others there are.
    """

    fills = False

    def __init__(self, extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources) -> None:
        self.device, self.batch_size = torch.device(resources.device), resources.batch_size or 1
        self.dtype, self.poolings = DTYPES[str(recipe.dtype)], recipe.poolings(len(extractor.feature_info))
        self.extractor = _faster(_on(self.device, extractor), recipe, resources)
        self.runtime = self.extractor.runtime if isinstance(self.extractor, OptimizedExtractor) else "plain"
        config = extractor.data_config or DataConfig()
        self._mean = torch.tensor(config.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(config.std, device=self.device)[:, None, None]
        self._is_bgr = config.channel_order == "bgr"

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[list[Tensor], list[bool]]:
        """Images (h, w, chs) of 8 bits and one size to a tensor per level, on the CPU, and whether each row is finite.

        InputError if memory does not even suffice for one image.
        """
        count = len(pixels)
        if self.fills:
            pixels = [*pixels, *[pixels[-1]] * (-count % self.batch_size)]
        size = min(self.batch_size, len(pixels))
        parts, start = [], 0
        while start < len(pixels):
            try:
                parts.append(self._run(pixels[start : start + size]))
                start += size
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, FeatxError) or not _is_out_of_memory(error):
                    raise
                size = self._halve(size, pixels[0])
        levels = parts[0][0]
        if len(parts) > 1:
            levels = [torch.cat(level) for level in zip(*(levels for levels, _ in parts), strict=True)]
        return [level[:count] for level in levels], [finite for _, flags in parts for finite in flags][:count]

    def _halve(self, size: int, image: np.ndarray) -> int:
        if size == 1:
            raise InputError(f"there is not enough memory for one image of {image.shape[1]}x{image.shape[0]} pixels")
        self.batch_size = min(self.batch_size, size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return size // 2

    @torch.inference_mode()
    def _run(self, pixels: Sequence[np.ndarray]) -> tuple[list[Tensor], list[bool]]:
        returned: Any = self.extractor(self._images(pixels))
        levels = returned.values() if isinstance(returned, dict) else returned
        stored = [pooled(level, pooling) for level, pooling in zip(levels, self.poolings, strict=True)]
        stored = [level.to(self.dtype).to("cpu").contiguous() for level in stored]
        finite = torch.stack([level.flatten(1).isfinite().all(1) for level in stored]).all(0)
        return stored, finite.tolist()

    def _images(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """(n, chs, h, w) as `featx.transform` makes them, by the same operations in the same order."""
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        if self.device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self.device, non_blocking=True)
        numbers = images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return numbers.flip(1) if self._is_bgr else numbers


def _faster(extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources) -> FeatureExtractWrapper:
    """The extractor as the recipe wants it run, on as many batches at once as there are streams."""
    runtime, streams = recipe.runtime, resources.streams or 1
    if runtime == "plain":
        return extractor
    config = extractor.data_config or DataConfig()
    size = (recipe.size, recipe.size) if recipe.size else config.size
    shape = (resources.batch_size or MANY, extractor.in_chans or 3, *size)
    with threads_of_a_stream(streams):
        if recipe.keep_aspect:
            faster = _of_any_size(extractor, runtime, shape)
        else:
            images = smooth_noise(torch.empty(shape, device=resources.device))
            faster = optimize(extractor, runtime=runtime, example=images)
    if isinstance(faster, EngineExtractor) and streams > 1:
        faster.serve(streams)
    return faster


def _of_any_size(
    extractor: FeatureExtractWrapper, runtime: Optimized, shape: tuple[int, int, int, int]
) -> OptimizedExtractor:
    """ArgumentError if the runtime that was asked for takes images of one size alone."""
    faster = optimize(extractor, runtime=runtime)
    if takes(faster, (*shape[:3], 2 * shape[3])):
        return faster
    if runtime == "auto":
        return optimize(extractor, runtime="eager")
    raise ArgumentError(f"keep_aspect: runtime={runtime!r} runs this model on images of one size alone: choose 'eager'")


@contextmanager
def threads_of_a_stream(streams: int) -> Iterator[None]:
    """Within the block PyTorch uses the share of its threads that each of so many batches at once has."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // streams))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on(device: torch.device, extractor: FeatureExtractWrapper) -> FeatureExtractWrapper:
    """The extractor on that device; the caller's own stays where it is."""
    tensor = next(extractor.parameters(), None)
    if tensor is None or (tensor.device.type == device.type and device.index in (None, tensor.device.index)):
        return extractor
    return deepcopy(extractor).to(device)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error).lower() for words in OUT_OF_MEMORY
    )


def fastest_batch_size(model: Model, image: np.ndarray) -> int:
    """The smallest batch size that takes about the least time per image, among those that fit into memory.

    image: (h, w, 3) of 8 bits, as all will be.
    """
    seconds: dict[int, float] = {}
    for size in SIZES:
        model.batch_size = size
        try:
            taken = min(_seconds(model, [image] * size) for _ in range(2))
        except InputError:
            break
        if model.batch_size < size:  # it ran out of memory
            break
        seconds[size] = taken / size
        if taken > LONGEST or seconds[size] > 1.5 * min(seconds.values()):
            break
    best = min(seconds.values(), default=0)
    return next((size for size, each in seconds.items() if each * ENOUGH <= best), 1)


def _seconds(model: Model, images: list[np.ndarray]) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start
