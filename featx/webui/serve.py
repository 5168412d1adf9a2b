"""`featx view`: serve the page, by default on the loopback interface only, and delete its files at the end."""

import ipaddress
import os
import signal
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from threading import Event
from typing import Annotated, Any

import typer

from ..errors import ArgumentError, MissingPackageError
from ..terminal import Terminal
from .guard import Guard, Limits

LOOPBACK = "127.0.0.1"
# No data leaves the machine, no history is kept, and nothing but the page is served.
PRIVATE: dict[str, Any] = {
    "share": False,
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": False,
    "ssr_mode": False,
    "pwa": False,
    "show_error": False,
    "footer_links": [],
    "inline": False,
    "quiet": True,
    "prevent_thread_lock": True,
    "state_session_capacity": 16,
}


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: the page's URL, and the folder that holds its files until it is closed."""

    url: str
    folder: str


@contextmanager
def serve(host: str = LOOPBACK, port: int | None = None, limits: Limits | None = None) -> Iterator[Served]:
    """Serve the page within a `with` block.

    Uploads are deleted after decoding. Pictures are kept in a temporary folder, which is deleted at the end. No data is
    sent to other machines.

    Args:
        host: the address to listen on. With an address other than loopback, anyone who reaches it can use the page,
            but not open files of this machine.
        port: None for the first free port from 7860.
        limits: limits on uploads.

    Raises:
        ArgumentError: the host or the port cannot be listened on.
        MissingPackageError: gradio or matplotlib is not installed.
    """
    _require_packages()
    limits, remote = limits or Limits(), not is_loopback(host)
    _require_free(host, port)
    with TemporaryDirectory(prefix="featx-view-") as folder, _gradio_files_in(folder):
        from .page import CSS, page

        blocks = page(limits, remote=remote)
        listening = {"server_name": host, "server_port": port, "app_kwargs": {"middleware": _middleware(host, limits)}}
        try:
            _, url, _ = blocks.launch(max_file_size=limits.nbytes, css=CSS, **listening, **PRIVATE)
            yield Served(url, folder)
        finally:
            blocks.close(verbose=False)


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only. ArgumentError if it is not an IP address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError as error:
        raise ArgumentError(f"host {host!r}: expected an address such as 127.0.0.1 or 0.0.0.0") from error


def _middleware(host: str, limits: Limits) -> list[Any]:
    """The upload guard and, on loopback, a check of the Host header, which prevents DNS rebinding."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guard = Middleware(Guard, limits=limits)
    if not is_loopback(host):
        return [guard]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host]), guard]


def _require_free(host: str, port: int | None) -> None:
    """ArgumentError if the port of the address cannot be listened on. None stands for any port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host.strip("[]"), port or 0))
        except OSError as error:
            wanted = "any port" if port is None else f"port {port}"
            reason = error.strerror or str(error)
            raise ArgumentError(f"cannot listen on {host}, {wanted}: {reason}; choose another") from error


@contextmanager
def _gradio_files_in(folder: str) -> Iterator[None]:
    """Make gradio store its files in `folder`. It reads the location from an environment variable only."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def _require_packages() -> None:
    try:
        import gradio
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("the page needs gradio and matplotlib: pip install 'featx[view]'") from error
    del gradio, matplotlib


def wait() -> None:
    """Block until this process receives SIGINT, SIGTERM or SIGHUP."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), stop)
    with suppress(KeyboardInterrupt):
        Event().wait()


def view(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With an address other than loopback, anyone who reaches the port can use the "
            "page, unencrypted and without a password; files of this machine are then not opened for visitors."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; the first free one from 7860 by default.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Show a model's maps and attention on a local page: drop a photograph, choose a model, click a point."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # the page shows errors
    out = Terminal()
    with serve(host, port) as served:
        out.print(f"featx view: {served.url} (Ctrl-C to end)", soft_wrap=True)
        if not is_loopback(host):
            out.print(f"open to whoever reaches {host}: no password, no encryption", style="yellow", soft_wrap=True)
        if browser:
            webbrowser.open(served.url)
        wait()
