"""Batched inference from pixels to the stored tensors of each level, and the search for the fastest batch size."""

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
from ..runtime.agreement import accepts, smooth_noise
from ..runtime.backends.engine import EngineExtractor
from ..runtime.optimization import Runtime as Optimized
from ..runtime.optimized import OptimizedExtractor
from ..wrappers import FeatureExtractWrapper
from .config import DTYPES, Pooling, Recipe, Resources

GEM_POWER = 3.0  # Radenovic et al., https://arxiv.org/abs/1711.02512
GEM_LEAST = 1e-6  # lower bound of the values, because roots are taken
DEFAULT_BATCH = 16  # images of the example for `optimize` before the batch size is measured
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_cpu")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENOUGH = 0.97  # relative to the least time per image; a smaller batch within this margin takes less memory
LONGEST = 2.0  # seconds of one batch, after which larger ones are not measured


def _gem(map_: Tensor) -> Tensor:
    """(n, chs, h, w) to (n, chs): the cube root of the mean cube, of positive values."""
    return map_.clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


POOLINGS: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "none": lambda map_: map_,
    "mean": lambda map_: map_.mean((2, 3)),
    "max": lambda map_: map_.amax((2, 3)),
    "gem": _gem,
    "pre_logits": lambda map_: map_.flatten(1),  # one cell, see `PreLogits`
}


def pooled(returned: Tensor | tuple[Tensor, Tensor], pooling: Pooling) -> Tensor:
    """The stored tensor of a level: the map (n, chs, h, w), or a vector (n, chs).

    Args:
        returned: the map, or the pair of prefix tokens (n, tokens, chs) and map.
        pooling: from maps to vectors.

    Raises:
        ArgumentError: the pooling is "cls", and there are no tokens.
    """
    tokens, map_ = returned if isinstance(returned, tuple) else (None, returned)
    if pooling != "cls":
        return POOLINGS[pooling](map_)
    if tokens is None or tokens.shape[1] == 0:
        raise ArgumentError(
            "pooling 'cls' takes a transformer's class token, and this extractor returns none: choose 'mean', or make "
            'it of a model with a class token and output="tokens"'
        )
    return tokens[:, 0]


def pads_batches(images: int, batch_size: int, recipe: Recipe) -> bool:
    """Whether incomplete batches are padded, for a total number of images.

    They are not if there are fewer images than one batch, or if images keep their aspect, because most batches are then
    incomplete and padding would be slow.
    """
    return images >= batch_size and not recipe.keep_aspect


class InferenceModel:
    """An extractor on its device that takes lists of pixels. It is thread-safe.

    Attributes:
        runtime: of the extractor, never "auto".
        batch_size: maximum number of images per batch, 1 until it is measured. It is halved permanently when memory
            runs out.
        pads: whether incomplete batches are padded with copies of an image. Results may differ in the last digits
            between batch sizes; with padding, an image's result does not depend on the other images.
    """

    pads = False

    def __init__(self, extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources) -> None:
        self.device, self.batch_size = torch.device(resources.device), resources.batch_size or 1
        self.dtype, self.poolings = DTYPES[str(recipe.dtype)], recipe.poolings(len(extractor.feature_info))
        self.extractor = _optimized(_to_device(extractor, self.device), recipe, resources)
        self.runtime = self.extractor.runtime if isinstance(self.extractor, OptimizedExtractor) else "plain"
        config = extractor.data_config or DataConfig()
        self._mean = torch.tensor(config.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(config.std, device=self.device)[:, None, None]
        self._is_bgr = config.channel_order == "bgr"

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[list[Tensor], list[bool]]:
        """A tensor per level, on the CPU, and for each row whether it is finite.

        Args:
            pixels: images (h, w, chs) of 8 bits, all of one size.

        Raises:
            InputError: there is not enough memory for one image.
        """
        count = len(pixels)
        if self.pads:
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
        """Images (n, chs, h, w), with the same operations in the same order as `featx.transform`."""
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        if self.device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self.device, non_blocking=True)
        numbers = images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return numbers.flip(1) if self._is_bgr else numbers


def _optimized(extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources) -> FeatureExtractWrapper:
    """The extractor on the recipe's runtime, prepared for concurrent batches."""
    runtime, streams = recipe.runtime, resources.streams or 1
    if runtime == "plain":
        return extractor
    config = extractor.data_config or DataConfig()
    size = (recipe.size, recipe.size) if recipe.size else config.size
    shape = (resources.batch_size or DEFAULT_BATCH, extractor.in_chans or 3, *size)
    with share_threads(streams):
        if recipe.keep_aspect:
            optimized = _optimized_for_any_size(extractor, runtime, shape)
        else:
            images = smooth_noise(torch.empty(shape, device=resources.device))
            optimized = optimize(extractor, runtime=runtime, example=images)
    if isinstance(optimized, EngineExtractor) and streams > 1:
        optimized.serve(streams)
    return optimized


def _optimized_for_any_size(
    extractor: FeatureExtractWrapper, runtime: Optimized, shape: tuple[int, int, int, int]
) -> OptimizedExtractor:
    """The optimized extractor; ArgumentError if the requested runtime supports only one image size."""
    optimized = optimize(extractor, runtime=runtime)
    if accepts(optimized, (*shape[:3], 2 * shape[3])):
        return optimized
    if runtime == "auto":
        return optimize(extractor, runtime="eager")
    raise ArgumentError(f"keep_aspect: runtime={runtime!r} runs this model on images of one size alone: choose 'eager'")


@contextmanager
def share_threads(streams: int) -> Iterator[None]:
    """A context in which PyTorch uses 1/streams of its threads, so that concurrent batches share them equally."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // streams))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _to_device(extractor: FeatureExtractWrapper, device: torch.device) -> FeatureExtractWrapper:
    """The extractor if it is on the device, or else a copy on the device."""
    tensor = next(extractor.parameters(), None)
    if tensor is None or (tensor.device.type == device.type and device.index in (None, tensor.device.index)):
        return extractor
    return deepcopy(extractor).to(device)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error).lower() for words in OUT_OF_MEMORY
    )


def fastest_batch_size(model: InferenceModel, image: np.ndarray) -> int:
    """The smallest batch size with about the highest throughput, among those that fit into memory.

    Args:
        model: its `batch_size` is changed.
        image: (h, w, chs) of 8 bits, in the size of all images.
    """
    seconds: dict[int, float] = {}
    for size in SIZES:
        model.batch_size = size
        try:
            elapsed = min(_seconds(model, [image] * size) for _ in range(2))
        except InputError:
            break
        if model.batch_size < size:  # it ran out of memory
            break
        seconds[size] = elapsed / size
        if elapsed > LONGEST or seconds[size] > 1.5 * min(seconds.values()):
            break
    best = min(seconds.values(), default=0)
    return next((size for size, each in seconds.items() if each * ENOUGH <= best), 1)


def _seconds(model: InferenceModel, images: list[np.ndarray]) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start
