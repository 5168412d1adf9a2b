"""Signals that ask a long run to end: the first after what is in work, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from .options import err


class Stop:
    """Whether a signal asked to stop, and the status to exit with then."""

    status = 0

    def __call__(self) -> bool:
        return bool(self.status)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the shard in work be finished, the second does not."""
        del frame
        if self.status:
            raise KeyboardInterrupt
        self.status = 128 + number
        err.print("finishing the file in work; once more to end at once", soft_wrap=True)


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        err.print("ended at once: the file in work is lost, run the same command again to go on", soft_wrap=True)
        raise typer.Exit(stop.status or 130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
