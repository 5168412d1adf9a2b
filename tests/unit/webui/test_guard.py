"""The server of the local page refuses other sites, large bodies, and too many uploads of one visitor."""

import asyncio
import json
from pathlib import Path

import pytest
from support.webui import closed_loops as closed_loops
from support.webui import files, request, send

from featx.webui.guard import FORM_OVERHEAD, PARALLEL_UPLOADS, Guard, Limits, is_cross_site
from featx.webui.serve import serve

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")

FORM = {"Content_Type": "multipart/form-data; boundary=x"}
BODY = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nsmall\r\n--x--\r\n'
STRANGERS = [
    {"Origin": "https://attacker.example"},
    {"Origin": "http://127.0.0.1:1"},  # another program's page on this machine
    {"Origin": "null"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
]


@pytest.fixture(scope="module")
def served():
    with serve(limits=Limits(nbytes=2**20, waiting=3)) as served:
        yield served


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
@pytest.mark.parametrize("path", ["gradio_api/upload", "upload", "gradio_api/queue/join", "gradio_api/reset"])
def test_pages_of_other_sites_may_not_change_anything(served, path, headers):
    before = files(served)
    status, _, body = request(served, path, BODY, **FORM, **headers)
    assert (status, body) == (403, b"this request comes from the page of another site: open this page itself")
    assert files(served) == before


def test_the_page_itself_and_programs_may(served):
    own = served.url.rstrip("/")
    for headers in ({}, {"Origin": own}, {"Sec_Fetch_Site": "same-origin", "Origin": "https://a-proxy.example"}):
        assert request(served, "gradio_api/upload", BODY, **FORM, **headers)[0] == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"origin": "http://[::1]:7860", "host": "[::1]:7860"}, False),
        ({"origin": "https://Maps.example", "host": "maps.example"}, False),
        ({"origin": "https://maps.example"}, True),
        ({"origin": "http://[::1", "host": "[::1"}, True),
        ({"origin": "", "host": "maps.example"}, True),
        ({"sec-fetch-site": "none"}, False),
        ({}, False),
    ],
)
def test_origins_are_compared_with_the_name_asked_for(headers, expected):
    assert is_cross_site(headers) == expected


def test_of_uploads_that_nobody_fetched_the_oldest_are_deleted(served):
    sent = [Path(json.loads(send(served, f"upload {number}".encode())[2])[0]) for number in range(6)]
    assert [path.exists() for path in sent] == [False, False, False, True, True, True]


def test_many_files_at_once_count_as_many(served):
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n{number}\r\n'
        for number in range(9)
    )
    sent = request(served, "gradio_api/upload", f"{parts}--x--\r\n".encode(), **FORM)
    assert len(json.loads(sent[2])) == 9
    assert send(served, b"one more")[0] == 200
    assert len(files(served)) <= 3


@pytest.mark.parametrize(
    ("path", "nbytes"), [("gradio_api/upload", 2**20 + FORM_OVERHEAD + 1), ("gradio_api/queue/join", 2**20 + 1)]
)
def test_large_requests_are_refused_before_they_are_read(path, nbytes):
    asked = {
        "type": "http",
        "method": "POST",
        "path": f"/{path}",
        "headers": [(b"content-length", f"{nbytes}".encode())],
    }
    assert answered(Guard(unreachable, Limits(nbytes=2**20)), asked) == 413


def test_requests_of_unknown_length_are_refused():
    asked = {"type": "http", "method": "POST", "path": "/upload", "headers": [(b"transfer-encoding", b"chunked")]}
    assert answered(Guard(unreachable, Limits()), asked) == 411


def test_a_visitor_sends_few_files_at_the_same_time():
    asked = {"type": "http", "method": "POST", "path": "/upload", "headers": [(b"content-length", b"9")]}
    reached = []

    async def slow(scope, receive, send) -> None:
        reached.append(scope)
        await receive()

    async def several() -> list[int]:
        done, guard, statuses = asyncio.Event(), Guard(slow, Limits()), []

        async def send(message) -> None:
            statuses.append(message.get("status"))

        sent = [asyncio.ensure_future(guard(asked, done.wait, send)) for _ in range(PARALLEL_UPLOADS + 2)]
        for _ in range(9):
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*sent)
        return [status for status in statuses if status]

    assert asyncio.run(several()) == [429, 429]
    assert len(reached) == PARALLEL_UPLOADS


async def unreachable(scope, receive, send) -> None:
    raise AssertionError("the page was asked")


def answered(guard: Guard, scope: dict) -> int:
    """The status that is answered."""
    sent = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, asyncio.Event().wait, send))
    return sent[0]["status"]
