"""Bounded prefetching in threads, and in processes that may crash."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import current_process
from pickle import PicklingError
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from ..errors import ArgumentError, in_short
from .decoder import Decoded, Decoder

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

T = TypeVar("T")
R = TypeVar("R")
# What a process raises that cannot be started: limits of the system, sources of images that cannot be sent to it, or a
# parent that may have no processes of its own.
CANNOT_START = (OSError, RuntimeError, AssertionError, PicklingError, AttributeError, TypeError)
# How the other end of a connection is found to have ended.
ENDED = (EOFError, ConnectionError)


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
    """Decodes in processes, each of which does one image at a time. Several threads may call it at once.

    An image fails if its decoder crashes or takes longer than `timeout` seconds; the other images are decoded.

    Raises ArgumentError if the processes cannot start.
    """

    def __init__(self, decoder: Decoder, workers: int, timeout: float | None = None) -> None:
        self._idle: SimpleQueue[_DecoderProcess] = SimpleQueue()
        self._all: list[_DecoderProcess] = []
        try:
            for _ in range(workers):
                self._all.append(_DecoderProcess(decoder, timeout))
            for process in self._all:
                process.require_ready()
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    def __call__(self, item: int) -> Decoded:
        process = self._idle.get()
        try:
            return process.decode(item)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes, also those that are decoding."""
        for process in self._all:
            process.close()


class _DecoderProcess:
    """A process that decodes one image after another, and is started again if it ends."""

    def __init__(self, decoder: Decoder, timeout: float | None) -> None:
        self._decoder, self._timeout, self._is_closed = decoder, timeout, False
        self._start()

    def decode(self, item: int) -> Decoded:
        try:
            self._connection.send(item)
            if self._connection.poll(self._timeout):
                found = self._connection.recv()
            else:
                found = Decoded(item, reason=f"it took longer than {self._timeout:g} seconds to decode it")
                self._restart()
        except ENDED:
            found = Decoded(item, reason="the process that decoded it died")
            self._restart()
        if isinstance(found, Exception):
            raise found
        return found

    def require_ready(self) -> None:
        """Wait until the process has imported what it needs. ArgumentError if it ends before."""
        try:
            self._connection.recv()
        except ENDED:
            raise _cannot_start("it ended before it was ready") from None

    def close(self) -> None:
        self._is_closed = True
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = _context()
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._decoder), name="decode", daemon=True)
        try:
            process.start()
        except CANNOT_START as error:
            raise _cannot_start(in_short(error)) from error
        finally:
            theirs.close()
        self._process = process

    def _restart(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        if not self._is_closed:
            self._start()
            self.require_ready()


def _cannot_start(reason: str) -> ArgumentError:
    guard = 'if __name__ == "__main__":'
    return ArgumentError(
        f"decoders='processes': a process that decodes cannot start: {reason}. Each of them imports the script that "
        f"started it, which must be a file: put what it does below `{guard}`, or choose decoders='threads'"
    )


def end_where_main_is_imported() -> None:
    """End this process if it is one of another's that imports the main script, which has no guard and called this.

    It could start no processes. The one that started it raises ArgumentError.
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(1)


def _context() -> "SpawnContext | ForkServerContext":
    """Processes that fork from one which has imported what they need, and no threads whose locks they would inherit."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["featx.bulk.decoder"])
    return context


def _serve(connection: Connection, decoder: Decoder) -> None:
    """Tell that this process is ready, and then decode what is asked for until nothing is any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides what to finish
    Thread(target=_end_with_parent, daemon=True).start()
    connection.send(None)
    with suppress(EOFError):
        while True:
            item = connection.recv()
            try:
                found: Decoded | Exception = decoder(item)
            except Exception as error:  # raised where the image is needed
                found = error
            connection.send(found)


def _end_with_parent() -> None:
    """A process whose parent was killed would decode for nobody."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
