"""Processes that start with the imports of a test done, so that tests can kill many of them."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from unittest.mock import patch


@contextmanager
def fork_server(*modules: str) -> Iterator[ForkServerContext]:
    """A server of processes that has imported `modules`, and that ends with the block.

    A process has one server. One that runs already has imported what another test needs, and a server does not get the
    `sys.path` of its parent, on which the modules of tests are.
    """
    forkserver._forkserver._stop()
    context = get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    try:
        yield context
    finally:
        forkserver._forkserver._stop()


class Killer:
    """Kills processes at moments drawn from what a run takes, however busy the machine is."""

    def __init__(self, run: Callable[[int], ForkServerProcess]) -> None:
        """`run` starts a process with a number; three are timed, the first of which may wait for its server."""
        lasted = []
        for number in range(3):
            begin = time.monotonic()
            run(number).join()
            lasted.append(time.monotonic() - begin)
        self.seconds, self.draws = min(lasted), random.Random(0)

    def __call__(self, process: ForkServerProcess) -> bool:
        """Whether the process was killed; if it was done before, the next is killed earlier."""
        time.sleep(self.draws.uniform(0, self.seconds))
        process.kill()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        self.seconds *= 1 if killed else 0.8
        return killed
