"""The server of the local page: accepted clients, refusals, and cleanup."""

import json
import os
import socket
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from support.webui import closed_loops as closed_loops
from support.webui import coffee as coffee
from support.webui import files, request, send

import featx
import featx.cli
from featx.webui.guard import Limits
from featx.webui.serve import is_loopback, serve
from featx.webui.session import Session

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")


# The server


@pytest.fixture(scope="module")
def served():
    with serve(limits=Limits(nbytes=2**20)) as served:
        yield served


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
    from featx.webui.page import Handlers

    written, session = BytesIO(), Session()
    coffee.save(written, format="png")
    status, _, body = send(served, written.getvalue())
    (path,) = json.loads(body)
    assert status == 200
    assert Path(path).is_relative_to(served.folder)
    Handlers(Limits(), remote=False).receive(path, session)
    assert np.array_equal(session.photograph, coffee)
    assert not Path(path).exists()


def test_files_of_the_machine_are_not_served(served, tmp_path):
    (tmp_path / "own").write_text("secret")
    for path in (tmp_path / "own", Path(__file__), Path("/etc/hosts")):
        status, _, body = request(served, f"gradio_api/file={path}")
        assert status in (403, 404)
        assert b"secret" not in body


def test_nothing_is_left_when_the_page_is_closed(monkeypatch):
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


def test_a_host_that_is_not_address_is_an_error():
    with pytest.raises(featx.ArgumentError, match=r"host 'here': expected an address such as 127\.0\.0\.1"):
        is_loopback("here")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False), ("10.0.0.7", False)],
)
def test_loopback_addresses_are_known(host, loopback):
    assert is_loopback(host) == loopback


def test_a_page_for_other_machines_offers_no_files():
    from featx.webui.page import page

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


# The command


def test_the_command_listens_on_loopback_by_default_and_says_what_else_means(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["featx", "view", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        featx.cli.main()
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: 127.0.0.1]" in said
    assert "anyone who reaches the port can use the page, unencrypted and without a password" in said
