"""Locks exclude other writers, name their holder, and end with their process."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from featx import OutputError
from featx.locks import locked

SUBJECT = "another run is writing to maps"
HOLD = """
import fcntl, os, sys, time
from pathlib import Path
from featx.locks import locked
if sys.argv[2] == "soft":
    def refuse(*_):
        raise OSError(38, "Function not implemented")
    fcntl.flock = refuse
with locked(Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["flock", "soft"])
def kind(request, monkeypatch) -> str:
    """Whether the file system has flock; on Lustre without it, it answers ENOSYS."""
    if request.param == "soft":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


@pytest.fixture
def holder(tmp_path, kind):
    """Another process that holds the lock `a`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a"), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_that_is_released_leaves_no_file(tmp_path, kind):
    for _ in range(2):
        with locked(tmp_path / "a", SUBJECT):
            assert (tmp_path / "a").read_text().split("\n")[:2] == [str(os.getpid()), platform.node()]
        assert not list(tmp_path.iterdir())


def test_the_process_that_holds_a_lock_is_named_with_its_host_and_since_when(tmp_path, holder):
    told = rf"^another run is writing to maps \(a is held by process {holder.pid} on {platform.node()} since \d{{4}}-"
    with pytest.raises(OutputError, match=told) as refused, locked(tmp_path / "a", SUBJECT):
        pass
    assert "wait for it, or stop it first" in str(refused.value)
    assert "delete" not in str(refused.value)


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "a").exists()
    with locked(tmp_path / "a", SUBJECT):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_says_how_to_be_sure_and_what_to_delete(tmp_path, kind):
    if kind == "flock":
        pytest.skip("the server of the file system releases it")
    (tmp_path / "a").write_text("4711\nnode-17\n")
    told = r"held by process 4711 on node-17 since \d{4}"
    with pytest.raises(OutputError, match=told) as refused, locked(tmp_path / "a", SUBJECT):
        pass
    told = f"If that machine is gone, or `ps -p 4711` on it shows no such process, delete {tmp_path / 'a'}"
    assert told in str(refused.value)
    (tmp_path / "a").unlink()
    with locked(tmp_path / "a", SUBJECT):
        pass


def test_a_lock_that_names_nobody_says_what_to_delete(tmp_path, kind):
    if kind == "flock":
        pytest.skip("an empty file holds nothing there")
    (tmp_path / "a").touch()
    told = r"a is held\): wait .* no featx process on any machine .* delete .*/a$"
    with pytest.raises(OutputError, match=told), locked(tmp_path / "a", SUBJECT):
        pass


def test_threads_hold_a_lock_one_after_another(tmp_path, kind):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "a", SUBJECT, wait=60):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"cannot write to .*file: "),
        locked(tmp_path / "file/a", SUBJECT),
    ):
        pass
