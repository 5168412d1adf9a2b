"""The local page without a browser: what it computes, what it refuses, what it leaves behind."""

import asyncio
import json
import os
import socket
import struct
import sys
import urllib.error
import urllib.request
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

import featx
import featx.cli
from featx.view import session as session_module
from featx.view.attended import attended
from featx.view.choice import Choice, Values, build, facts, require_published
from featx.view.message import public
from featx.view.serve import is_loopback, serve
from featx.view.session import Asked, Models, Parts, Session, What, answer, draw, marked, usual
from featx.view.upload import Limits, take

NAME = "mobilenetv3_small_050"
VIT = "vit_tiny_patch16_224"
SIZE = 64
LOCAL = {"remote": False}

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")


def random(name: str = NAME, seed: int = 0) -> Choice:
    return Choice(name, Values.random, seed)


def asked(what: What, name: str = NAME, **fields) -> Asked:
    return Asked(random(name), what, Parts(**{"levels": (1, 3), "level": 2, **fields}), SIZE)


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
def coffee() -> Image.Image:
    return Image.fromarray(data.coffee()).resize((144, 96))


@pytest.fixture
def session(coffee) -> Session:
    return Session(coffee, (0.3, 0.7))


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def upload(tmp_path):
    """Puts bytes or a picture where gradio puts an upload: in a folder of its own."""

    def upload(content, name: str = "photograph.png") -> Path:
        path = tmp_path / "gradio" / "0123" / name
        path.parent.mkdir(parents=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
        return path

    return upload


# Uploads


def test_an_upload_is_decoded_and_deleted(upload, coffee):
    path = upload(coffee)
    assert np.array_equal(take(path, Limits()), coffee)
    assert not path.parent.exists()


def test_a_photograph_stands_upright(upload, coffee):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    written = BytesIO()
    coffee.save(written, format="jpeg", exif=exif)
    assert take(upload(written.getvalue(), "photograph.jpg"), Limits()).size == (96, 144)


def png_of_size(width: int, height: int) -> bytes:
    """A head that promises pixels, and no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "limits", "message"),
    [
        (b"a letter", Limits(), "not an image in any format that Pillow reads"),
        (b"", Limits(), "not an image in any format that Pillow reads"),
        (png_of_size(9, 9), Limits(), "."),
        (bytes(3 * 2**20), Limits(nbytes=2**20), r"the file has 3\.0 MiB, and this page takes up to 1 MiB: make"),
        (png_of_size(8000, 7000), Limits(), "8000x7000 pixels, 56 million, and this page takes up to 50 million: make"),
        (png_of_size(11000, 10000), Limits(), "11000x10000 pixels, 110 million"),
        (png_of_size(60000, 60000), Limits(), "more pixels than Pillow opens: make it smaller"),
        (png_of_size(900, 200), Limits(), "900x200 pixels: one side is more than 4 times the other; crop it"),
    ],
    ids=["text", "empty", "cut short", "bytes", "pixels", "where Pillow warns", "where Pillow refuses", "aspect"],
)
def test_what_is_refused_is_deleted_too(upload, content, limits, message):
    path = upload(content)
    with pytest.raises(featx.ImageError, match=message):
        take(path, limits)
    assert not path.parent.exists()


# Models and levels


def test_random_weights_are_those_of_their_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build(random(seed=seed)).state_dict()["conv_stem.weight"] for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(featx.ArgumentError, match=f"the seed is {seed}: choose one from 0 to 4294967295"):
        build(random(seed=seed))


def test_a_checkpoint_must_be_named():
    with pytest.raises(featx.ArgumentError, match="no checkpoint is named: enter a file"):
        build(Choice(NAME, Values.checkpoint))


def test_levels_and_blocks_are_told_without_weights():
    levels, blocks = facts(VIT)
    assert (len(levels), blocks[-1]) == (12, "blocks.11")
    assert facts("resnet18")[1] == []


@pytest.mark.parametrize(("name", "shown"), [("resnet18", [0, 1, 2, 3, 4]), (VIT, [2, 5, 8, 11])])
def test_of_many_levels_four_are_shown(name, shown):
    assert list(usual(*facts(name)).levels) == shown


def test_a_model_is_kept_for_the_next_picture(session):
    models = Models()
    assert models.get(random()) is models.get(random())
    assert models.get(random(seed=1)) is not models.get(random())


def test_a_checkpoint_is_read_again_when_it_changed(session, tmp_path):
    file, models = tmp_path / "last.safetensors", Models()
    choice = Choice(NAME, Values.checkpoint, checkpoint=str(file))
    maps = []
    for seed, written in ((0, 10), (1, 20)):
        torch.manual_seed(seed)
        save_file(featx.create_model(NAME).state_dict(), file)
        os.utime(file, (written, written))
        maps.append(session.maps(models, choice, SIZE)[1][0])
    assert not torch.equal(*maps)


def test_visitors_on_other_machines_reach_no_files():
    require_published(Choice("resnet50.a1_in1k"))
    for choice in (
        Choice(NAME, Values.checkpoint, checkpoint="/etc/passwd"),
        Choice("local-dir:/etc"),
        Choice("hf-hub:someone/something"),
        Choice("transformers//etc"),
    ):
        with pytest.raises(featx.ArgumentError, match="this page is served to other machines: it shows featx's own"):
            require_published(choice)
        assert answer(Session(), Models(), Asked(choice), remote=True).message.startswith("this page is served")


# Pictures


@pytest.mark.parametrize("what", What)
def test_every_kind_of_picture_is_drawn(session, models, what):
    given = answer(session, models, asked(what, VIT, block="blocks.3"), **LOCAL)
    assert given.message == ""
    assert given.picture is not None
    assert min(given.picture.size) > 100
    assert len(given.picture.getcolors(2**24)) > 100


@pytest.mark.parametrize("what", [What.similarity, What.attention])
def test_another_point_is_another_picture(session, models, what):
    first = draw(session, models, asked(what, VIT, block="blocks.3"))
    session.point = 0.9, 0.1
    assert not np.array_equal(first, draw(session, models, asked(what, VIT, block="blocks.3")))


def test_without_a_point_attention_is_the_class_tokens(session, models):
    session.point = None
    assert answer(session, models, asked(What.attention, VIT, block="blocks.3"), **LOCAL).picture is not None


def test_maps_are_computed_once_for_a_photograph(session, models, monkeypatch):
    first = session.maps(models, random(), SIZE)
    monkeypatch.setattr(session_module, "build", None)
    assert session.maps(models, random(), SIZE)[1] is first[1]


def test_another_photograph_forgets_the_point_and_the_maps(session, models, coffee):
    session.maps(models, random(), SIZE)
    session.show(coffee)
    assert (session.point, session.computed) == (None, None)


@pytest.mark.parametrize(
    ("fields", "point", "message"),
    [
        ({"what": What.similarity}, None, "click a point of the photograph"),
        ({"what": What.maps, "levels": ()}, None, "no level was asked for"),
        ({"what": What.channels, "level": 9}, None, "there is no level 9"),
        ({"what": What.channels, "level": None}, None, "choose a level"),
        ({"what": What.attention}, None, "has no attention among tokens"),
        ({"what": What.attention, "name": VIT}, None, "choose one of the blocks with attention: blocks.0, "),
        ({"what": What.maps, "name": "resnet1"}, None, "no model is named 'resnet1'"),
    ],
    ids=["point", "levels", "other level", "level", "attention", "block", "model"],
)
def test_what_is_missing_is_told_instead_of_a_picture(session, models, fields, point, message):
    session.point = point
    given = answer(session, models, asked(**fields), **LOCAL)
    assert message in given.message
    assert (given.picture, given.code) == (None, "")


def test_without_a_photograph_there_is_nothing_to_draw(models):
    assert answer(Session(), models, asked(What.maps), **LOCAL).message == "there is no photograph yet: drop one"


def test_the_photograph_is_marked_at_the_point(session, coffee):
    changed = np.abs(np.asarray(marked(session), dtype=int) - np.asarray(coffee, dtype=int)).sum(2) > 0
    rows, columns = np.nonzero(changed)
    assert rows.mean() == pytest.approx(0.7 * 96, abs=1)  # a ring, of whole pixels
    assert columns.mean() == pytest.approx(0.3 * 144, abs=1)


def test_a_large_photograph_is_shown_smaller_and_kept_whole(session):
    session.show(Image.new("RGB", (4000, 2000)))
    assert marked(session).size == (1024, 512)
    assert session.photograph.size == (4000, 2000)


# Attention


def test_heads_attend_as_the_capture_says():
    extractor = build(random(VIT))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), featx.capture_attention(extractor, [3]) as seen:
        extractor(image)
    map_ = seen.maps["blocks.3"][0]  # (3, 1 + 24, 1 + 24): a class token, then 4x6 patches in rows
    heads, looks = attended(extractor, image, "blocks.3", None)
    assert torch.equal(heads, map_[:, 0, 1:].reshape(3, 4, 6))
    assert looks == "the class token"
    heads, looks = attended(extractor, image, "blocks.3", (0.4, 0.8))  # column 2, row 3
    assert torch.equal(heads, map_[:, 1 + 3 * 6 + 2, 1:].reshape(3, 4, 6))
    assert looks == "the patch clicked"


def test_a_model_without_class_token_attends_from_all_patches():
    extractor = build(random("vit_wee_patch16_reg1_gap_256"))
    extractor_maps = attended(extractor, torch.randn(1, 3, 64, 64), "blocks.0", None)
    assert extractor_maps[0].shape[1:] == (4, 4)


def test_a_pixel_of_mobilevit_attends_to_the_patches_at_its_place():
    extractor = build(random("mobilevit_xxs"))
    image = torch.randn(1, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), featx.capture_attention(extractor, [-1]) as seen:
        extractor(image)  # the last map has 4x8 pixels, 2x4 patches of 2x2
    (block,) = seen.maps
    heads, looks = attended(extractor, image, block, (0.99, 0.3))  # pixel in row 1, column 7: the fourth of its patch
    assert torch.equal(heads, seen.maps[block][3, :, 3].reshape(4, 2, 4))
    assert looks == "the pixel clicked"


def test_mobilevitv2_scores_patches_for_all_pixels():
    extractor = build(random("mobilevitv2_050"))
    heads, looks = attended(extractor, torch.randn(1, 3, 128, 256), "stages.4.1.transformer.2", (0.5, 0.5))
    assert (heads.shape, looks) == ((1, 2, 4), "all pixels")
    assert heads.sum().item() == pytest.approx(1, abs=1e-5)  # single precision


def test_windows_are_no_grid_over_the_image():
    extractor = build(random("timm/swin_tiny_patch4_window7_224"))
    with pytest.raises(featx.ContractError, match="attends within 64 windows"):
        attended(extractor, torch.randn(1, 3, 224, 224), "layers.0.blocks.0", None)


# The code that is shown


def run(code: str, photograph: Path) -> dict:
    scope: dict = {}
    exec(code.replace('"photograph.jpg"', repr(str(photograph))), scope)
    return scope


@pytest.fixture
def file(tmp_path, coffee) -> Path:
    coffee.save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


@pytest.mark.parametrize("size", [None, SIZE])
def test_the_code_gives_the_maps_that_are_shown(session, models, file, size):
    given = answer(session, models, Asked(random(), What.maps, Parts((1, 3)), size), **LOCAL)
    _, maps = session.maps(models, random(), size)
    ran = run(given.code, file)["maps"]
    assert len(ran) == 2
    assert all(torch.equal(map_, maps[i]) for map_, i in zip(ran, (1, 3), strict=True))


def test_the_code_gives_the_similarity_that_is_shown(session, models, file):
    given = answer(session, models, asked(What.similarity, level=2), **LOCAL)
    alike = run(given.code, file)["alike"]
    assert torch.equal(alike, featx.viz.similarity(session.maps(models, random(), SIZE)[1][2], (0.3, 0.7)))


def test_the_code_gives_the_attention_that_is_shown(session, models, file):
    given = answer(session, models, asked(What.attention, VIT, block="blocks.3"), **LOCAL)
    seen, extractor = run(given.code, file)["seen"], models.get(random(VIT))
    heads, _ = attended(extractor, session.input(extractor, SIZE), "blocks.3", None)
    assert torch.equal(seen.maps["blocks.3"][0, :, 0, 1:].reshape(heads.shape), heads)


def test_the_code_names_the_checkpoint(session, tmp_path, file):
    checkpoint = tmp_path / "it's mine.safetensors"
    torch.manual_seed(3)
    save_file(featx.create_model(NAME).state_dict(), checkpoint)
    choice = Choice(NAME, Values.checkpoint, checkpoint=str(checkpoint))
    given = answer(session, Models(), Asked(choice, What.norms, Parts((0,)), SIZE), **LOCAL)
    assert torch.equal(run(given.code, file)["maps"][0], session.maps(Models(), choice, SIZE)[1][0])


def test_the_code_of_published_weights_says_so():
    from featx.view.code import of_maps

    assert f"featx.create_model('{NAME}', pretrained=True, features_only=True, out_indices=[1])" in of_maps(
        Choice(NAME), None, [1]
    )


# Messages


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("no such file: /home/ann/weights/last.pt", "no such file: …/last.pt"),
        ("'/srv/data/cut.jpg' is cut short", "'…/cut.jpg' is cut short"),
        (f"{Path.cwd()}/inner folder/a.pt: not a checkpoint", "…/inner folder/a.pt: not a checkpoint"),
        (r"C:\Users\ann\last.pt is gone", "…/last.pt is gone"),
        ("~/weights/last.pt is gone", "…/last.pt is gone"),
        (f"{Path.cwd()}/a/b/c.pt is gone", "…/c.pt is gone"),
        ("https://huggingface.co/timm/resnet18/a", "https://huggingface.co/timm/resnet18/a"),
        ("config.json of timm/resnet18.a1_in1k", "config.json of timm/resnet18.a1_in1k"),
        ("at 1/4 and 1/16, yes/no/maybe", "at 1/4 and 1/16, yes/no/maybe"),
    ],
)
def test_messages_do_not_tell_where_files_are(message, told):
    assert public(featx.CheckpointError(message)) == told


def test_a_checkpoint_that_is_absent_is_told_without_its_folder(session, tmp_path):
    choice = Choice(NAME, Values.checkpoint, checkpoint=str(tmp_path / "absent.pt"))
    message = answer(session, Models(), Asked(choice, parts=Parts((0,))), **LOCAL).message
    assert "absent.pt" in message
    assert str(tmp_path) not in message
    assert tmp_path.name not in message


# The server


@pytest.fixture(scope="module")
def served():
    with serve(limits=Limits(nbytes=2**20)) as served:
        yield served


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


def test_the_page_is_served(served):
    status, _, body = request(served, "")
    assert status == 200
    assert b"featx view" in body


def test_only_the_loopback_address_is_listened_on(served):
    port = int(served.url.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError, match=r"refused|timed out"):  # 127.0.0.2 is this machine too, if all are listened on
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_other_names_for_this_machine_are_not_answered(served):
    assert request(served, "", Host="attacker.example")[0] == 400


def test_pages_of_other_sites_may_not_read(served):
    assert "Access-Control-Allow-Origin" not in request(served, "config", Origin="https://attacker.example")[1]


def test_gradio_counts_nobody_and_keeps_no_history(served):
    config = json.loads(request(served, "config")[2])
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert config["show_error"] is False
    assert json.loads(request(served, "gradio_api/info")[2])["named_endpoints"] == {}


def test_an_upload_with_too_many_bytes_is_refused_and_leaves_nothing(served):
    before = files(served)
    status, _, body = send(served, bytes(2**20 + 1))
    assert (status, body) == (413, b"File size exceeded maximum allowed size of 1048576 bytes.")
    assert files(served) == before


def test_an_upload_is_gone_once_the_page_has_received_it(served, coffee):
    from featx.view.handlers import Handlers

    written, session = BytesIO(), Session()
    coffee.save(written, format="png")
    status, _, body = send(served, written.getvalue())
    (path,) = json.loads(body)
    assert status == 200
    assert Path(path).is_relative_to(served.folder)
    Handlers(Limits(), remote=False).received(path, session)
    assert np.array_equal(session.photograph, coffee)
    assert not Path(path).exists()


def test_files_of_the_machine_are_not_served(served, tmp_path):
    (tmp_path / "own").write_text("secret")
    for path in (tmp_path / "own", Path(__file__), Path("/etc/hosts")):
        status, _, body = request(served, f"gradio_api/file={path}")
        assert status in (403, 404)
        assert b"secret" not in body


def test_nothing_is_left_when_the_page_is_closed(monkeypatch, coffee):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with serve() as served:
        assert send(served, b"left behind")[0] == 200
        assert files(served)
    assert not Path(served.folder).exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"


def test_a_port_that_is_taken_is_an_error(served):
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with (
        pytest.raises(
            featx.ArgumentError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: Address already in use"
        ),
        serve(port=port),
    ):
        pass


def test_an_address_of_another_machine_is_an_error():
    message = r"cannot listen on 192\.0\.2\.1, any port: Cannot assign requested address; choose another"
    with pytest.raises(featx.ArgumentError, match=message), serve("192.0.2.1"):  # which is nobody's
        pass


def test_a_host_that_is_no_address_is_an_error():
    with pytest.raises(featx.ArgumentError, match=r"host 'here': expected an address such as 127\.0\.0\.1"):
        is_loopback("here")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False), ("10.0.0.7", False)],
)
def test_loopback_addresses_are_known(host, loopback):
    assert is_loopback(host) == loopback


def test_a_page_for_other_machines_offers_no_files():
    from featx.view.page import page

    def component(remote: bool, id_: str) -> dict:
        parts = page(Limits(), remote=remote).get_config_file()["components"]
        return next(part["props"] for part in parts if part["props"].get("elem_id") == id_)

    assert [value for value, _ in component(True, "weights")["choices"]] == ["published", "random"]
    assert [value for value, _ in component(False, "weights")["choices"]] == ["published", "random", "checkpoint"]
    assert not component(True, "model")["allow_custom_value"]


def test_without_gradio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(featx.MissingPackageError, match=r"pip install 'featx\[view\]'"), serve():
        pass


# The fields


def test_another_model_brings_its_levels_and_blocks(session):
    from featx.view.handlers import Handlers

    handlers = Handlers(Limits(), remote=False)
    levels, level, block, picture, message, code = handlers.renamed(session, VIT, "random", 0, "", SIZE, "maps")
    assert levels.value == [2, 5, 8, 11]
    assert level.choices[level.value][0] == "blocks.11 · 1/16"
    assert block.value == "blocks.11"
    assert picture is not None
    assert (message.value, code.visible) == ("", True)
    *_, picture, message, code = handlers.renamed(session, "resnet1", "random", 0, "", SIZE, "maps")
    assert picture is None
    assert message.value.startswith("no model is named 'resnet1'")
    assert not code.visible


def test_a_click_shows_similarity_and_keeps_attention(session):
    from featx.view.handlers import clicked

    event = SimpleNamespace(index=[36, 24])  # of 144x96
    assert clicked(session, "maps", event)[1] == "similarity"
    assert session.point == (0.25, 0.25)
    assert clicked(session, "attention", event)[1] == "attention"


# The command


def test_the_command_listens_on_loopback_by_default_and_says_what_else_means(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["featx", "view", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        featx.cli.main()
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: 127.0.0.1]" in said
    assert "whoever reaches this machine's port use the page, unencrypted and without a password" in said
