"""Entry point of the command `featx`, outside of the package, so that Ctrl-C works during the import of the package."""

import os
import signal


def main() -> None:
    """Import the command line and run it; Ctrl-C during the import exits with status 130 and no message."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a background job ignores the signal
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from featx.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()
