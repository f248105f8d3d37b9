"""The cache of what data folders hold, and the processes that decode for it."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mavcli import stopping
from mavcli.data import index as indexing
from mavcli.data import scan as scanning
from mavcli.data.clips import VideoFolder
from mavcli.data.index import Index, decode_all, indexed
from mavcli.data.places import Place
from mavcli.data.scan import pack, passing, scan, unpack
from mavcli.errors import Interrupted
from mavcli.media import passing as passing_conditions
from mavcli.media.video import Damage, write_video


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(indexing, "is_settled", lambda *times: True)  # as if the files were older
    return tmp_path / "cache" / "index"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of what is decoded, which happens in this process."""
    names: list[str] = []

    def here(places, *, kind, workers=None, stall=0.0):
        for number, place in enumerate(places):
            names.append(place.name)
            yield number, indexing.scan(place, kind)

    monkeypatch.setattr(indexing, "decode_all", here)
    return names


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "videos"
    root.mkdir()
    for i, name in enumerate("abc"):
        write_video(root / f"{name}.mkv", np.full((4, 16, 16, 3), 40 * i, np.uint8), fps=8, codec="ffv1")
    return root


def test_a_file_is_decoded_once_until_it_changes(folder, cache, decoded):
    first = VideoFolder(folder)
    assert decoded == ["a.mkv", "b.mkv", "c.mkv"]
    again = VideoFolder(folder)
    assert len(decoded) == 3
    for one, two in zip(first.sources, again.sources, strict=True):
        assert np.array_equal(one.times, two.times) and np.array_equal(one.keyframes, two.keyframes)
        assert (one.rate, one.sha256, one.start) == (two.rate, two.sha256, two.start)
    os.utime(folder / "b.mkv", ns=(1, 1))
    (folder / "c.mkv").rename(folder / "d.mkv")
    assert len(VideoFolder(folder)) == 3
    assert decoded[3:] == ["b.mkv", "d.mkv"]
    VideoFolder(folder, again=True)
    assert len(decoded) == 8


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "no json", "older", "believable"])
def test_a_damaged_cache_is_made_again_and_never_believed(harm, folder, cache, decoded):
    wanted = VideoFolder(folder).sources[0].times
    (path,) = cache.glob("*.jsonl")
    data = path.read_bytes()
    if harm == "believable":  # whole JSON, other content than the checksum says
        harmed = data.replace(b'"rate":"8"', b'"rate":"9"')
        assert harmed != data
    elif harm == "older":
        harmed = data.replace(b'"format": 4', b'"format": 3')
        assert harmed != data
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        harmed = {"cut": data[:-40], "flipped": flipped, "empty": b"", "no json": b"[]\n{{{\n"}[harm]
    path.write_bytes(harmed)
    source = VideoFolder(folder).sources[0]
    assert len(decoded) == 6 and np.array_equal(source.times, wanted) and source.fps == 8
    assert path.read_bytes() == data, "written again"


def test_a_cache_that_cannot_be_written_is_said_and_nothing_else_fails(
    folder, tmp_path, monkeypatch, decoded
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "file"))
    videos = VideoFolder(folder)
    assert len(videos) == 3 and "cannot be kept" in str(videos.note)


def test_an_interrupted_reading_keeps_what_it_found(folder, cache, decoded):
    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VideoFolder(folder, progress=stop)
    VideoFolder(folder)
    assert decoded == ["a.mkv", "b.mkv", "c.mkv"]


def test_a_file_that_changes_while_it_is_read_is_left_out_this_time(folder, cache, decoded, monkeypatch):
    def late(places, **rest):
        for number, place in enumerate(places):
            facts = indexing.scan(place, "video")
            if place.name == "b.mkv" and os.stat(place.path).st_mtime_ns != 5:
                os.utime(place.path, ns=(5, 5))
            yield number, facts

    monkeypatch.setattr(indexing, "decode_all", late)
    assert VideoFolder(folder).rejected == {"b.mkv": "changed while it was read"}
    assert not VideoFolder(folder).rejected


def test_decoders_that_hang_or_die_are_replaced_and_the_rest_goes_on(folder):
    os.mkfifo(folder / "pipe")  # opening it for reading waits for ever
    good = [Place(f"{n}.mkv", str(folder / f"{n}.mkv")) for n in "ab"]
    waits = Place("pipe", str(folder / "pipe"), 0, 10)
    found = dict(decode_all([good[0], waits, good[1]], kind="video", workers=1, stall=5))
    assert found[1] == passing("nothing came for 5 s")
    assert found[0]["rate"] == found[2]["rate"] == "8"


def ending(kill: int, times: int) -> type[indexing._Decoder]:
    """A decoder's class whose first `times` processes end by a signal over their first job."""
    left = [times]

    class Ending(indexing._Decoder):
        def __init__(self) -> None:
            super().__init__()
            if left[0]:
                left[0] -= 1
                self._process.send_signal(kill)
                self._process.wait()

    return Ending


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_killed_from_outside_says_nothing_of_its_file(kill, folder, cache, monkeypatch):
    monkeypatch.setattr(indexing, "_Decoder", ending(kill, 2))
    place = [Place("a.mkv", str(folder / "a.mkv"))]
    ((facts,), note) = indexed("k", place, kind="video", workers=1)
    assert "could not be read this time" in facts["reason"] and kill.name in facts["reason"]
    assert "1 of 1 file could not be read this time and is left out until the next" in str(note)
    ((facts,), note) = indexed("k", place, kind="video", workers=1)
    assert facts["rate"] == "8" and note is None


def test_a_file_that_a_decoder_was_killed_over_is_tried_again_at_once(folder, monkeypatch):
    monkeypatch.setattr(indexing, "_Decoder", ending(signal.SIGKILL, 1))
    ((_, facts),) = decode_all([Place("a.mkv", str(folder / "a.mkv"))], kind="video")
    assert facts["rate"] == "8"


def test_a_file_that_makes_two_decoders_crash_is_kept_as_that(folder, cache, monkeypatch):
    monkeypatch.setattr(indexing, "_Decoder", ending(signal.SIGSEGV, 2))
    place = [Place("a.mkv", str(folder / "a.mkv"))]
    for _ in range(2):
        assert indexed("k", place, kind="video", workers=1) == ([{"reason": "makes the decoder crash"}], None)


FAILING = {
    "permission": OSError(errno.EACCES, "Permission denied"),
    "file handles": OSError(errno.EMFILE, "Too many open files"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "memory": MemoryError(),
    "libjpeg without memory": OSError("broken data stream when reading image file"),
    "import": ImportError("cannot import"),
}


@pytest.mark.parametrize("cause", FAILING)
def test_a_condition_that_passes_is_no_fact_of_a_picture(cause, tmp_path, cache, monkeypatch):
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "good.jpg")
    place = [Place("good.jpg", str(tmp_path / "good.jpg"))]
    with monkeypatch.context() as now:
        if "memory" in cause:
            now.setattr(passing_conditions, "short_of_memory", lambda: True)

        def fail(*_):
            raise FAILING[cause]

        now.setattr(ImageFile.ImageFile, "load", fail)
        ((facts,), note) = indexed("k", place, kind="image")
    assert facts["reason"].startswith("could not be read this time: ") and "damaged" not in facts["reason"]
    assert note is not None
    assert indexed("k", place, kind="image")[0][0]["width"] == 32


def test_a_file_without_permission_is_read_once_it_is_given(folder, cache, decoded, monkeypatch):
    real = open

    def refuse(path, *rest, **more):
        if str(path).endswith("b.mkv"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **more)

    with monkeypatch.context() as now:  # whoever runs the tests may be root
        now.setattr("builtins.open", refuse)
        refused = VideoFolder(folder)
    assert refused.rejected == {"b.mkv": "could not be read this time: permission denied"}
    assert "1 of 3 files could not be read this time" in str(refused.note)
    assert not VideoFolder(folder).rejected
    assert decoded == ["a.mkv", "b.mkv", "c.mkv", "b.mkv"]


def test_damage_that_is_not_found_a_second_time_is_not_kept(folder, monkeypatch):
    place, real, looks = Place("a.mkv", str(folder / "a.mkv")), scanning.survey, []

    def weather(media, **rest):
        looks.append(media)
        found = real(media, **rest)
        return replace(found, warnings=(Damage("damaged data after 2 frames"),)) if len(looks) == 1 else found

    monkeypatch.setattr(scanning, "survey", weather)
    assert scan(place, "video")["warnings"] == [] and len(looks) == 2


def test_nothing_is_kept_of_a_file_whose_reader_swallowed_the_wish_to_stop(tmp_path, cache, monkeypatch):
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "good.png")
    place = [Place("good.png", str(tmp_path / "good.png"))]

    def swallow(*_):  # as a C callback or a `__del__` does with what a signal raises
        stopping.ask(Interrupted("terminated", exit_code=143))
        raise ValueError("out of nowhere")

    with monkeypatch.context() as now:
        now.setattr(ImageFile.ImageFile, "load", swallow)
        with pytest.raises(Interrupted):
            indexed("k", place, kind="image")
    stopping.forget()
    assert indexed("k", place, kind="image")[0][0]["width"] == 32


def test_numbers_are_packed_without_loss():
    rng = np.random.default_rng(0)
    for numbers in (np.arange(0), np.arange(5) * 333_667, np.cumsum(rng.integers(1, 2**40, 1000))):
        assert np.array_equal(unpack(pack(numbers)), numbers)
    assert len(pack(np.arange(100_000) * 333_333)) < 2000, "a frame costs a fiftieth of a byte"


def test_pictures_and_videos_of_one_folder_have_indexes_of_their_own(folder, cache):
    place = [Place("a.mkv", str(folder / "a.mkv"))]
    assert "reason" in indexed(str(folder), place, kind="image")[0][0]
    assert {json.loads(p.read_text().splitlines()[0])["key"] for p in cache.glob("*.jsonl")} == {
        f"image {folder}"
    }
    assert Index(f"video {folder}").path != Index(f"image {folder}").path


def test_a_file_exchanged_for_one_of_its_size_and_date_is_decoded_again(folder, cache, decoded):
    VideoFolder(folder)
    decoded.clear()
    a, b = folder / "a.mkv", folder / "b.mkv"
    date, other = a.stat(), b.read_bytes()[: a.stat().st_size].ljust(a.stat().st_size, b"\0")
    a.write_bytes(other)
    os.utime(a, ns=(date.st_atime_ns, date.st_mtime_ns))
    VideoFolder(folder)
    assert decoded == ["a.mkv"]


def test_what_is_known_of_a_file_that_was_written_just_now_is_not_kept(folder, cache, decoded, monkeypatch):
    monkeypatch.setattr(indexing, "is_settled", lambda *times: False)
    VideoFolder(folder)
    VideoFolder(folder)
    assert decoded == ["a.mkv", "b.mkv", "c.mkv"] * 2
