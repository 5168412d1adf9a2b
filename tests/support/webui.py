"""A photograph, models and what is asked of the local page."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.figures import coffee as coffee

from featx.webui.model_choice import ModelChoice, WeightsKind
from featx.webui.session import ModelParts, Models, PictureKind, PictureRequest, Session

NAME = "mobilenetv3_small_050"
VIT = "vit_tiny_patch16_224"
SIZE = 64
LOCAL = {"remote": False}


def random(name: str = NAME, seed: int = 0) -> ModelChoice:
    return ModelChoice(name, WeightsKind.random, seed)


def asked(what: PictureKind, name: str = NAME, **fields) -> PictureRequest:
    return PictureRequest(random(name), what, ModelParts(**{"levels": (1, 3), "level": 2, **fields}), SIZE)


@pytest.fixture(scope="module", autouse=True)
def closed_loops():
    """Gradio makes event loops that it never closes, of which Python would warn in some later test."""
    made, make = [], asyncio.new_event_loop
    asyncio.new_event_loop = lambda: made.append(make()) or made[-1]
    yield
    asyncio.new_event_loop = make
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


@pytest.fixture
def session(coffee) -> Session:
    return Session(coffee, (0.3, 0.7))


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def file(tmp_path, coffee) -> Path:
    coffee.save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def request(served, path: str, body: bytes | None = None, **headers: str):
    """Status, headers and body of what is answered."""
    asked_for = urllib.request.Request(served.url + path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked_for, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def send(served, content: bytes):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    return request(served, "gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")


def files(served) -> list[Path]:
    return [path for path in Path(served.folder).rglob("*") if path.is_file()]
