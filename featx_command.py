"""The command `featx`, outside of the package, whose import takes seconds in which Ctrl-C is to end it already."""

import os
import signal


def main() -> None:
    """Import the command line and run it; Ctrl-C before there is anything to finish ends with status 130, silently."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a job in the background ignores the signal
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from featx.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()
