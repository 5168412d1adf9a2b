"""The command `featx view`."""

import webbrowser
from typing import Annotated

import typer

from ..terminal import Terminal


def view(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Any other than a loopback address lets whoever reaches this machine's port use "
            "the page, unencrypted and without a password; files of this machine are then not opened for visitors."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; the first free one from 7860 by default.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look into models on a local page: drop a photograph, choose a model, click a point. Ctrl-C ends it."""
    from huggingface_hub.utils import logging

    from .serve import is_loopback, serve, wait

    logging.set_verbosity_error()  # the page says what failed
    out = Terminal()
    with serve(host, port) as served:
        out.print(f"featx view: {served.url} (Ctrl-C to end)", soft_wrap=True)
        if not is_loopback(host):
            out.print(f"open to whoever reaches {host}: no password, no encryption", style="yellow", soft_wrap=True)
        if browser:
            webbrowser.open(served.url)
        wait()
