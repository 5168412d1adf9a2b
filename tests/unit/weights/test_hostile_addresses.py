"""Impossible addresses and names, and servers with odd answers: specific errors, without passwords in them."""

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weight_places import Tiny

import featx
from featx.weights.download import checked_url, content_length


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://[::1/w.pth", r"'http://\[::1/w.pth' is not a URL \(ValueError: Invalid IPv6 URL\)"),
        ("http://host:port/w.pth", "is not a URL"),
        ("http://host:99999/w.pth", "is not a URL"),
        (f"http://{'a' * 64}.org/w.pth", "is not a URL .*label"),
        ("http://a..b/w.pth", "is not a URL .*label"),
        ("http:///w.pth", "is not the URL of a file"),
        ("http://host/a\x1b[2J.pth", r"is not the URL of a file"),
        ("http://host/" + "a" * 251 + ".pth", "is not the URL of a file"),
        ("http://host/" + "a/" * 5000 + "w.pth", "is not the URL of a file"),
        ("http://host/" + "в" * 120 + ".pth", "is not the URL of a file"),
        ("https://me:secret@host/w.pth", "'https://host/w.pth' holds the name or password of a user"),
        ("https://secret@host/w.pth", "'https://host/w.pth' holds the name or password of a user"),
        ("https://me:secret@host:port/w.pth", "'https://host:port/w.pth' is not a URL:"),
        ("https://me:secret@[::1/w.pth", "is not a URL:"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_address_is_refused_before_anybody_is_asked(url, problem):
    with pytest.raises(featx.ArgumentError, match=problem) as refused:
        featx.load_weights(Tiny(), url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("scheme", ["http", "HTTP", "Https"])
def test_schemes_are_read_in_any_case(scheme, monkeypatch):
    asked = []
    monkeypatch.setattr("featx.weights.download.download_url", lambda url, cache_dir: asked.append(url) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        featx.load_weights(Tiny(), f"{scheme}://host/w.pth")
    assert asked == [f"{scheme}://host/w.pth"]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("12", 12),
        (None, None),
        ("0", None),
        ("abc", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("9" * 5000, None),
    ],
)
def test_lengths_that_servers_announce_are_numbers_or_none(text, length):
    assert content_length(text) == length


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The address of a server that gives these answers, whatever it is asked, and hangs up after each."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/w.pth"
        thread.join(10)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1/w.pth\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://host:port/w.pth\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 70 + b".org/w.pth\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nno weights",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nno weights",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 404 \xff\r\n\r\n",
        b"no HTTP at all",
        b"",
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib does not close after errors
def test_odd_answers_of_servers_are_errors_of_featx(answer, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering(answer) as url, pytest.raises(featx.FeatxError) as refused:
        featx.load_weights(Tiny(), url, cache_dir=tmp_path)
    assert len(str(refused.value).splitlines()) <= 12
    del refused
    gc.collect()  # here, where the warning is expected


LONG = ["a" * 256, "в" * 200, "a/" * 3000]


@pytest.mark.parametrize("name", LONG, ids=lambda name: f"{name[:2]}{len(name)}")
@pytest.mark.parametrize("place", ["{}", "{}.pth", "local-dir:{}", "hf-hub:{}/b", "hf-hub:a/{}", "hf-hub:a/b@{}"])
def test_names_that_no_file_can_have_are_errors_of_featx(name, place, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = place.format(name)
    with pytest.raises(featx.FeatxError):
        featx.load_weights(Tiny(), where)
    if ":" in place:
        with pytest.raises(featx.FeatxError):
            featx.create_model(where)


def test_a_model_is_not_saved_under_a_name_that_no_folder_can_have(tmp_path):
    with pytest.raises(featx.OutputError, match="cannot write"):
        featx.save(featx.create_model("test_efficientnet"), tmp_path / ("a" * 256))


LETTERS = ["http://", "HTTPS://", "[", "]", ":", "@", "/", "?", "#", "%", "..", "a" * 64, "host", ".pth", "\0"]
PIECES = st.lists(st.sampled_from(LETTERS) | st.text(max_size=3), max_size=20)


def check_address(pieces: list[str]) -> None:
    """The text is an address, or refused in a few words."""
    with suppress(featx.ArgumentError):
        checked_url("http://" + "".join(pieces))


@given(PIECES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_an_address_or_an_argument_error(pieces):
    check_address(pieces)


@pytest.mark.sweep
@given(PIECES)
@settings(max_examples=8000, deadline=None)
def test_many_texts_are_addresses_or_argument_errors(pieces):
    check_address(pieces)
