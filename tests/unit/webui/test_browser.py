"""The local page in a headless browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
VIT = "vit_tiny_patch16_224"
MINUTE = 60_000  # milliseconds: the first picture waits for models, matplotlib and a busy machine

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The page, served by the command, which must leave no temporary files when it is told to end."""
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-c", "from featx.cli import main; main()", "view", "--no-browser"],
        env={**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        yield re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert [path.name for path in temporary.iterdir() if path.name.startswith("featx")] == []
    finally:
        process.kill()
        process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        # without a sandbox, which needs a kernel's help that containers do not have
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(url, browser):
    """The page as it opens, with random weights; no other address may be asked for anything."""
    asked = set()
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    page.set_default_timeout(MINUTE)
    page.goto(url)
    page.get_by_label("random").check()
    page.get_by_label("Seed").wait_for()
    choose(page, "mobilevit_xxs")
    page.get_by_label("stages.4 · 1/32").wait_for()
    yield page
    page.close()
    assert asked == {url.split("/")[2]}


def choose(page, model: str) -> None:
    page.locator("#model input").fill(model)
    page.locator("#model input").press("Enter")


def upload(page, file: Path) -> None:
    page.set_input_files("#upload input[type=file]", file)


def picture(page, other_than: str | None = None) -> str:
    """Address of the picture, once there is another one."""
    shown = page.locator("#picture img")
    shown.wait_for()
    page.wait_for_function("before => document.querySelector('#picture img')?.src !== before", arg=other_than)
    return shown.get_attribute("src")


def click(page, x: float, y: float) -> None:
    """Click the photograph at shares of its width and height."""
    box = page.locator("#photograph img").bounding_box()
    page.locator("#photograph img").click(position={"x": x * box["width"], "y": y * box["height"]})


def code(page, text: str) -> str:
    """The code, once it contains the text."""
    page.locator("#code .cm-content", has_text=text).wait_for()
    return page.locator("#code .cm-content").inner_text()


def test_a_photograph_is_looked_at_with_several_models_and_from_several_points(page):
    upload(page, PHOTOGRAPHS / "chelsea.png")
    maps = picture(page)
    assert "create_model('mobilevit_xxs', features_only=True, out_indices=[0, 1, 2, 3, 4, 5])" in code(
        page, "mobilevit"
    )

    choose(page, "resnet18")
    resnet = picture(page, other_than=maps)
    assert "torch.manual_seed(0)\nmodel = featx.create_model('resnet18'" in code(page, "resnet18")

    click(page, 0.25, 0.5)
    first = picture(page, other_than=resnet)
    x, y = map(float, re.search(r"similarity\(maps\[0\], \((.*), (.*)\)\)", code(page, "similarity(")).groups())
    assert (x, y) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01))  # a pixel of the screen
    click(page, 0.75, 0.25)
    picture(page, other_than=first)


@pytest.mark.sweep
def test_choosing_quickly_confuses_nothing(page):
    upload(page, PHOTOGRAPHS / "coffee.png")
    picture(page)
    page.get_by_label("Seed").fill("7")
    choose(page, VIT)
    page.get_by_label("norms").check()
    choose(page, "resnet18")
    assert "torch.manual_seed(7)" in code(page, "create_model('resnet18', features_only=True, out_indices=[0, 1, 2")
    page.get_by_label("layer4 · 1/32").wait_for()
    assert page.get_by_text("not in the list of choices").count() == 0


@pytest.mark.sweep
def test_attention_of_a_block_is_shown_by_head(page):
    upload(page, PHOTOGRAPHS / "coffee.png")
    maps = picture(page)
    page.get_by_label("attention").check()
    picture(page, other_than=maps)
    assert "capture_attention(model, ['stages.4.1.transformer.2'])" in code(page, "capture_attention")


@pytest.mark.sweep
def test_a_tall_photograph_is_clicked_where_it_is_drawn(page, tmp_path):
    with Image.open(PHOTOGRAPHS / "rocket.jpg") as rocket:
        rocket.crop((200, 0, 400, 427)).save(tmp_path / "tall.jpg")
    upload(page, tmp_path / "tall.jpg")
    picture(page)
    box = page.locator("#photograph img").bounding_box()
    width = box["height"] * 200 / 427  # it is centered
    click(page, 0.5 + 0.25 * width / box["width"], 0.5)
    x, y = map(float, re.search(r"similarity\(maps\[0\], \((.*), (.*)\)\)", code(page, "similarity(")).groups())
    assert (x, y) == (pytest.approx(0.75, abs=0.02), pytest.approx(0.5, abs=0.02))  # a pixel of the screen


@pytest.mark.sweep
def test_levels_are_chosen(page):
    upload(page, PHOTOGRAPHS / "coffee.png")
    maps = picture(page)
    for level in ("stages.0 · 1/2", "stages.1 · 1/4", "stages.2 · 1/8", "final_conv · 1/32"):
        page.get_by_label(level).uncheck()
    code(page, "out_indices=[3, 4]")
    picture(page, other_than=maps)


@pytest.mark.parametrize(
    ("pixels", "extra", "message"),
    [
        ((8000, 7000), 0, "This photograph is refused: the picture has 8000x7000 pixels, 56 million"),
        ((10, 10), 33 * 2**20, "exceed the maximum allowed size of 32"),
    ],
    ids=["pixels", "bytes"],
)
@pytest.mark.sweep
def test_a_huge_photograph_is_refused_with_a_message(page, tmp_path, pixels, extra, message):
    Image.fromarray(np.zeros(pixels[::-1], dtype=bool)).save(tmp_path / "huge.png")
    with (tmp_path / "huge.png").open("ab") as file:
        file.write(bytes(extra))
    upload(page, tmp_path / "huge.png")
    page.get_by_text(message).wait_for()
    assert page.locator("#picture img").count() == 0


@pytest.mark.sweep
def test_published_weights_that_cannot_be_had_are_reported_in_the_page(page):
    upload(page, PHOTOGRAPHS / "coffee.png")
    picture(page)
    page.get_by_label("published").check()
    page.get_by_text(re.compile("Hub")).wait_for()
    assert page.locator("#picture img").count() == 0
    assert tempfile.gettempdir() not in page.locator("#message").inner_text()


@pytest.mark.sweep
def test_a_checkpoint_that_is_not_there_is_reported_without_its_folder(page):
    upload(page, PHOTOGRAPHS / "coffee.png")
    picture(page)
    page.get_by_label("checkpoint").check()
    page.get_by_label("Checkpoint", exact=True).fill("/somewhere/secret/absent.pt")
    page.get_by_label("Checkpoint", exact=True).press("Enter")
    page.get_by_text("…/absent.pt").wait_for()
    assert "secret" not in page.locator("#message").inner_text()


@pytest.mark.sweep
def test_the_page_fits_a_narrow_window(page):
    page.set_viewport_size({"width": 390, "height": 800})
    upload(page, PHOTOGRAPHS / "coffee.png")
    picture(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
