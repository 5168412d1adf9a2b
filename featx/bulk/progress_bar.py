"""A progress bar for extractions that Python starts: a widget in notebooks, text elsewhere."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..errors import ArgumentError, MissingPackageError
from .count import Progress

Tell = Callable[[Progress], object]


@contextmanager
def shown(progress: Tell | Literal["bar"] | None) -> Iterator[Tell | None]:
    """Within the block, what to call with every Progress: the function given, or a bar that ends with the block.

    Raises ArgumentError for what is neither, MissingPackageError for a bar without tqdm.
    """
    if progress is None or callable(progress):
        yield progress
        return
    if progress != "bar":
        raise ArgumentError(f"progress={progress!r}: expected a function of a featx.bulk.Progress, or 'bar'")
    with _tqdm()(desc="extracting", unit=" images") as bar:

        def tell(done: Progress) -> None:
            count = done.written + done.failed
            if bar.total is None:  # what was there before says nothing about the speed of this run
                bar.reset(done.total)
                bar.initial = bar.n = count
            bar.set_postfix({"failed": done.failed} if done.failed else {}, refresh=False)
            bar.update(count - bar.n)

        yield tell


def _tqdm() -> Any:
    """The class of bars that the place has: a widget if it is a notebook with ipywidgets, text otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook has no ipywidgets: the bar is text then
            from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingPackageError("progress='bar' needs tqdm: pip install 'featx[extract]'") from error
    return tqdm
