"""Bounded prefetching in threads, and decoding in processes, which isolates crashes."""

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
# Exceptions when a process cannot start: limits of the system, sources of images that cannot be pickled, or a daemonic
# parent, which must not have child processes.
CANNOT_START = (OSError, RuntimeError, AssertionError, PicklingError, AttributeError, TypeError)
# Exceptions when the process at the other end of a connection has ended.
ENDED = (EOFError, ConnectionError)


def prefetch(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Generator[R, None, None]:
    """Map `function` over `items` in order, with at most `depth` results pending."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class DecoderProcesses:
    """A thread-safe pool of processes that decode one image at a time each.

    An image fails if its process crashes or takes longer than `timeout` seconds; the other images are decoded.

    Raises:
        ArgumentError: the processes cannot start.
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
        """Kill all processes, including those that are decoding."""
        for process in self._all:
            process.close()


class _DecoderProcess:
    """A process that decodes one image after another, and is restarted if it ends."""

    def __init__(self, decoder: Decoder, timeout: float | None) -> None:
        self._decoder, self._timeout, self._is_closed = decoder, timeout, False
        self._start()

    def decode(self, item: int) -> Decoded:
        try:
            self._connection.send(item)
            if self._connection.poll(self._timeout):
                result = self._connection.recv()
            else:
                result = Decoded(item, reason=f"it took longer than {self._timeout:g} seconds to decode it")
                self._restart()
        except ENDED:
            result = Decoded(item, reason="the process that decoded it died")
            self._restart()
        if isinstance(result, Exception):
            raise result
        return result

    def require_ready(self) -> None:
        """Wait until the process has finished its imports; ArgumentError if it ends before that."""
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
        self._connection, child_connection = context.Pipe()
        process = context.Process(target=_serve, args=(child_connection, self._decoder), name="decode", daemon=True)
        try:
            process.start()
        except CANNOT_START as error:
            raise _cannot_start(in_short(error)) from error
        finally:
            child_connection.close()
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
    """End this process if it is a child process that imports a main script without an `if __name__` guard.

    Such a process cannot start further processes. Its parent raises ArgumentError.
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(1)


def _context() -> "SpawnContext | ForkServerContext":
    """A forkserver with the imports preloaded, which has no threads whose locks a fork would copy; or else spawn."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["featx.bulk.decoder"])
    return context


def _serve(connection: Connection, decoder: Decoder) -> None:
    """Report that this process is ready, then decode requested items until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what to finish
    Thread(target=_end_with_parent, daemon=True).start()
    connection.send(None)
    with suppress(EOFError):
        while True:
            item = connection.recv()
            try:
                result: Decoded | Exception = decoder(item)
            except Exception as error:  # the parent raises it
                result = error
            connection.send(result)


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
