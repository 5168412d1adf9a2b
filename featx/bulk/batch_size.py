"""How many images a model should see at once, measured."""

from time import perf_counter

import numpy as np

from ..errors import InputError
from .model import Model

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENOUGH = 0.97  # of the least time per image that was seen; a smaller batch within it takes less memory
LONGEST = 2.0  # seconds of one batch, after which larger ones are not tried


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
