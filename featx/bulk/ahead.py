"""Work done ahead of whoever needs it, a bounded number of steps, in threads or in processes that may crash."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, TypeVar

from .decode import Decoded, Decoder

T = TypeVar("T")
R = TypeVar("R")


def ahead(pool: Executor, function: Callable[[T], R], given: Iterable[T], steps: int) -> Generator[R, None, None]:
    """function(one) for each of the given, in their order, at most so many steps ahead of who iterates."""
    waiting: deque[Future[R]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(function, one))
            if len(waiting) >= steps:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class DecoderProcesses:
    """Decodes in processes; an image whose decoder crashes has failed, and the other images go on."""

    def __init__(self, decoder: Decoder, workers: int) -> None:
        self._decoder, self._workers = decoder, workers
        self._pool = self._started()

    def ahead(self, items: Iterable[int], steps: int) -> Iterator[Decoded]:
        """Each item decoded, in order."""
        waiting: deque[tuple[int, Future[Decoded]]] = deque()
        for item in items:
            waiting.append((item, self._submit(item)))
            if len(waiting) >= steps:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _first(self, waiting: "deque[tuple[int, Future[Decoded]]]") -> Decoded:
        item, future = waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            found = self._alone(item)
            again = [(other, self._submit(other)) for other, _ in waiting]
            waiting.clear()
            waiting.extend(again)
            return found

    def _submit(self, item: int) -> "Future[Decoded]":
        try:
            return self._pool.submit(_decode, item)
        except BrokenProcessPool:
            self._restart()
            return self._pool.submit(_decode, item)

    def _alone(self, item: int) -> Decoded:
        """The item with nothing beside it, so that a crash is its own."""
        self._restart()
        try:
            return self._pool.submit(_decode, item).result()
        except BrokenProcessPool:
            self._restart()
            return Decoded(item, reason="the process that decoded it died")

    def _restart(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, _context(), initializer=_prepare_process, initargs=(self._decoder,))


def _context() -> BaseContext:
    """Processes that fork from one which has imported what they need, and no threads whose locks they would inherit."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["featx.bulk.decode"])
    return context


_process: dict[str, Any] = {}


def _prepare_process(decoder: Decoder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides what to finish
    Thread(target=_end_with_parent, daemon=True).start()
    _process["decoder"] = decoder


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for images for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(item: int) -> Decoded:
    return _process["decoder"](item)
