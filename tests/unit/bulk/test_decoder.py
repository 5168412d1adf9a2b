"""Decoder processes: scripts without a main guard, processes that cannot start, and decoders that never end."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.extraction import index, names, noises
from support.slow_sources import Local, Raising, Slow, same

from featx import ArgumentError
from featx.bulk import Items, Resources
from featx.bulk.decoder import Decoder
from featx.bulk.prefetch import DecoderProcesses, end_where_main_is_imported

SCRIPT = """
import featx

def run():
    extractor = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[1]).eval()
    featx.extract("in", extractor, "out", size=32, decoders="processes", workers=2)

"""


def decoder_of(source: object) -> Decoder:
    return Decoder(Items([source], [""]), same)  # pyright: ignore[reportArgumentType]


@pytest.mark.sweep
def test_an_image_whose_decoder_does_not_end_fails_alone_and_in_time(tmp_path):
    folder = noises(tmp_path / "in", 8)
    source = Slow(folder, [path.name for path in sorted(folder.iterdir())], (1, 2, 6))
    processes = DecoderProcesses(decoder_of(source), 1, timeout=1)
    begin = time.monotonic()
    try:
        found = [processes(item) for item in range(8)]
    finally:
        processes.close()
    assert time.monotonic() - begin < 40
    reasons = {one.item: one.reason for one in found if one.pixels is None}
    assert reasons == dict.fromkeys((1, 2, 6), "it took longer than 1 seconds to decode it")


@pytest.mark.sweep
def test_processes_that_decode_for_ever_are_ended_when_the_run_is(tmp_path):
    folder = noises(tmp_path / "in", 1)
    processes = DecoderProcesses(decoder_of(Slow(folder, ["0000.png"], (0,))), 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(processes, 0)
        time.sleep(1)
        assert not waiting.done()
        processes.close()
        assert waiting.result(timeout=30).reason == "the process that decoded it died"


@pytest.mark.sweep
def test_an_error_that_is_not_images_is_raised_where_the_image_is_needed():
    processes = DecoderProcesses(decoder_of(Raising()), 1)
    try:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            processes(0)
    finally:
        processes.close()


def test_images_that_cannot_be_sent_to_a_process_are_refused():
    with pytest.raises(ArgumentError, match=r"a process that decodes cannot start: .*pickle.*decoders='threads'"):
        DecoderProcesses(decoder_of(Local()), 1)


def test_outside_of_such_an_import_nothing_ends():
    end_where_main_is_imported()


@pytest.mark.sweep
@pytest.mark.parametrize("guard", [False, True])
def test_a_script_needs_a_guard_and_is_reported_before_anything_is_stored(tmp_path, guard):
    noises(tmp_path / "in", 4)
    called = 'if __name__ == "__main__":\n    run()\n' if guard else "run()\n"
    (tmp_path / "script.py").write_text(SCRIPT + called)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if guard:
        assert (ran.returncode, ran.stderr) == (0, "")
        assert [row["status"] for row in index(tmp_path / "out")] == ["ok"] * 4
    else:
        assert ran.returncode == 1
        assert ran.stderr.count("Traceback") == 1
        last = ran.stderr.splitlines()[-1]
        assert last.startswith("featx.errors.ArgumentError: decoders='processes': a process that decodes cannot start")
        assert 'put what it does below `if __name__ == "__main__":`' in last
        assert not [name for name in names(tmp_path / "out") if name.startswith("maps")]
        assert index(tmp_path / "out") == []


def test_a_limit_of_time_needs_processes_and_a_time():
    with pytest.raises(ArgumentError, match="decode_timeout needs decoders='processes': a thread cannot be stopped"):
        Resources(decode_timeout=3)
    for seconds in (0, -1, float("nan"), 1e9):
        with pytest.raises(ArgumentError, match=r"decode_timeout=.*: expected seconds, at most 86400"):
            Resources(decode_timeout=seconds, decoders="processes")


def test_a_limit_of_pixels_is_positive():
    with pytest.raises(ArgumentError, match="max_pixels=0: expected a positive number"):
        Resources(max_pixels=0)
