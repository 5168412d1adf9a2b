"""The site builds without a warning, names everything that is public, and fits into narrow windows."""

import html
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest

import featx

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Packages whose public names are what they import, and modules whose public functions are their own.
ROOMS = ("attention", "bulk", "heads", "necks", "probe", "registers", "runtime", "training", "upsampling", "viz")
PACKAGES = ("featx", *(f"featx.{name}" for name in ROOMS))
MODULES = ("featx.cvnets", "featx.errors", "featx.explain")
NARROW = {"width": 420, "height": 800}  # pixels

pytestmark = pytest.mark.sweep


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(folder)]
    ran = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_the_family_that_is_walked_through_is_shown_whole(site):
    page = re.sub("<[^>]+>", "", html.unescape((site / "adding/index.html").read_text()))
    assert (ROOT / "featx/models/regnet.py").read_text().strip() in page


def public(name: str) -> dict[str, object]:
    """The public names of a package or module, with what they are."""
    module = import_module(name)
    lazy = {word: getattr(module, word) for word in getattr(module, "LAZY", ())}
    named = {word: value for word, value in {**vars(module), **lazy}.items() if not word.startswith("_")}
    own = {word: value for word, value in named.items() if inspect.isclass(value) or inspect.isfunction(value)}
    home = name if name in MODULES or name.startswith("featx.adapters.") else "featx"
    return {f"{name}.{word}": value for word, value in own.items() if value.__module__.startswith(home)}


def test_the_reference_names_everything_public(site):
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    # of the names of an object, the one it is shown under (priority 1): others may exist for type checkers alone
    shown = [line.split()[0] for line in lines if " py:" in line and "api/" in line and line.split()[2] == "1"]
    documented = {id(pkgutil.resolve_name(name)) for name in shown}
    adapters = [f"featx.adapters.{file.stem}" for file in (ROOT / "featx" / "adapters").glob("[a-z]*.py")]
    inner = {f"featx.adapters.{name}" for name in ("requirements", "transformers_backbone")}
    wanted = {name: value for package in (*PACKAGES, *MODULES) for name, value in public(package).items()}
    for adapter in {*adapters} - inner:
        wanted |= {name: value for name, value in public(adapter).items() if inspect.isfunction(value)}
    assert len(wanted) > len(vars(featx)) / 2
    assert sorted(name for name, value in wanted.items() if id(value) not in documented) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_pages_fit_into_a_narrow_window_and_ask_no_other_address(site):
    from playwright.sync_api import sync_playwright

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, asked, wide = f"http://127.0.0.1:{server.server_port}/", [], []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=NARROW)
        page.on("request", lambda request: asked.append(request.url))
        for path in sorted(path.parent.relative_to(site) for path in site.rglob("index.html")):
            page.goto(f"{home}{path}/", wait_until="domcontentloaded")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(str(path))
            assert page.locator("h1").count() == 1, path
        page.goto(f"{home}models/", wait_until="load")
        page.fill(".models-filter", "resnet18 sequential")
        rows = page.locator("article tbody tr:visible td:first-child").all_inner_texts()
        browser.close()
    server.shutdown()
    server.server_close()
    assert wide == []
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []
    assert rows == ["resnet18", "resnet18d", "seresnet18"]
