"""Tar shards, on disk and behind URLs."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mavcli.data import shards
from mavcli.data.clips import VideoFolder
from mavcli.data.pairs import ImageFolder, PairFolder
from mavcli.data.places import find_media, read_bytes
from mavcli.errors import InputError
from mavcli.media.image import write_png
from mavcli.media.video import write_video


def png(level: int, folder: Path) -> bytes:
    write_png(folder / "x.png", np.full((12, 20, 3), level, np.uint8), overwrite=True)
    return (folder / "x.png").read_bytes()


def tar(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Two shards of three captioned pictures, as webdataset writes them, and things that must be left alone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(3):
            level = 10 + 60 * shard + 20 * i
            members[f"a/{i:03}.seg.png"] = png(255, scratch)  # another picture of the sample: not its image
            members[f"./{i:03}.png"] = png(level, scratch)
            if i == 2:
                members[f"{i:03}.json"] = json.dumps({"caption": f"grey  {level}"}).encode()
            else:
                members[f"{i:03}.txt"] = f"grey {level}\n".encode()
            members[f"{i:03}.pyd"] = pickle.dumps(Bomb(tmp_path / "unpickled"))
        members["900.png"] = png(99, scratch)
        members["../../escaped.png"] = png(98, scratch)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar(root / f"{shard:02}.tar", members, link)
    return root


def levels(folder: PairFolder) -> set[tuple[int, str]]:
    rng = np.random.default_rng(0)
    return {(int(image.mean()), words) for image, words in (folder.draw(rng, size=4) for _ in range(60))}


WANTED = {(level, f"grey {level}") for level in (10, 30, 50, 70, 90, 110)}


def test_captioned_pictures_are_read_in_place_and_nothing_is_unpacked_or_unpickled(pairs, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for root in (pairs, str(pairs / "{00..01}.tar"), str(pairs / "*.tar")):
        folder = PairFolder(root)
        assert levels(folder) == WANTED and folder.layout == "captions from tar shards"
        assert folder.rejected["00.tar/link.png"].startswith("is a link")
        assert folder.rejected["01.tar/900.png"].startswith("has no `.txt`")
        assert folder.rejected["01.tar/../../escaped.png"].startswith("has no `.txt`")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_order_of_draws_is_that_of_the_names_however_the_shards_are_named(pairs):
    folders = [PairFolder(root) for root in (pairs, str(pairs / "{01,00}.tar"))]
    assert [pair.name for pair in folders[0].pairs] == [pair.name for pair in folders[1].pairs]


def test_videos_in_shards_are_those_of_the_files(tmp_path):
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8) * 2
    (tmp_path / "loose").mkdir()
    write_video(tmp_path / "loose" / "a.mp4", frames, fps=8, crf=4)
    data = (tmp_path / "loose" / "a.mp4").read_bytes()
    (tmp_path / "packed").mkdir()
    tar(tmp_path / "packed" / "s.tar", {"deep/a.mp4": data, "a.txt": b"never read", "b.mp4": b"junk" * 9})
    loose, packed = VideoFolder(tmp_path / "loose"), VideoFolder(tmp_path / "packed")
    assert [source.name for source in packed.sources] == ["s.tar/deep/a.mp4"]
    assert list(packed.rejected) == ["s.tar/b.mp4"]
    assert packed.sources[0].sha256 == loose.sources[0].sha256
    for cache in (512 << 20, 0):
        one, two = (
            VideoFolder(root, cache_bytes=cache).draw_fitting(
                np.random.default_rng(3), frames=8, fps=4.0, size=16
            )
            for root in (tmp_path / "loose", tmp_path / "packed")
        )
        assert np.array_equal(one.frames, two.frames) and one.start == two.start


def test_damaged_shards_give_what_comes_before_the_damage_and_say_so(pairs, tmp_path):
    whole = (pairs / "00.tar").read_bytes()
    (pairs / "00.tar").write_bytes(whole[: 512 * 5 + 100])
    (pairs / "02.tar").write_bytes(b"<html>404")
    (pairs / "03.tar").write_bytes(b"\x1f\x8b" + os.urandom(600))
    listing = find_media(pairs, lambda name: name.endswith(".png"))
    assert listing.rejected["02.tar"].startswith("is an HTML page, wanted a plain tar")
    assert listing.rejected["03.tar"].startswith("is a gzip archive, wanted a plain tar")
    assert sum(place.name.startswith("01.tar/") for place in listing.places) == 8
    assert 0 < sum(place.name.startswith("00.tar/") for place in listing.places) < 8


def test_patterns_name_what_is_there_or_say_what_is_not(pairs):
    with pytest.raises(InputError, match=r"names 2 shards that do not exist, first `.*02\.tar`"):
        shards.expand(str(pairs / "{00..03}.tar"))
    with pytest.raises(InputError, match=r"names no `\.tar` shard"):
        shards.expand(str(pairs / "x*.tar"))
    assert list(shards._braces("{a,b}/{08..10}.tar")) == [
        f"{x}/{n}.tar" for x in "ab" for n in ("08", "09", "10")
    ]
    with pytest.raises(InputError, match="wanted at most 100000"):
        list(shards._braces("{0..999999}.tar"))


@pytest.fixture
def remote(pairs, tmp_path, monkeypatch) -> str:
    """The shards in fsspec's memory, and a cache of their own."""
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for path in pairs.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("keep", [20 << 30, 0])
def test_shards_behind_urls_stay_on_disk_below_the_bound_and_are_read_by_range_above(remote, tmp_path, keep):
    folder = PairFolder(f"{remote}/{{00..01}}.tar", keep_bytes=keep)
    kept = list((tmp_path / "cache" / "shards").iterdir())
    assert len(kept) == (2 if keep else 0)
    assert levels(folder) == WANTED
    again = PairFolder(remote, keep_bytes=keep)
    assert [p.name for p in again.pairs] == [p.name for p in folder.pairs] and levels(again) == WANTED
    for path in kept:  # a lost copy is no loss
        path.unlink()
    assert levels(folder) == WANTED


def test_a_shard_that_changes_behind_its_url_is_read_again(remote, tmp_path):
    assert len(PairFolder(remote)) == 6
    scratch = tmp_path / "scratch"
    changed = tar(tmp_path / "new.tar", {"7.png": png(7, scratch), "7.txt": b"new"})
    fsspec.filesystem("memory").pipe_file("/bucket/00.tar", changed.read_bytes())
    assert [pair.caption for pair in PairFolder(remote).pairs].count("new") == 1


def test_file_urls_and_missing_ones(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_ATTEMPTS", 1)
    assert levels(PairFolder(f"file://{pairs}/*.tar")) == WANTED
    with pytest.raises(InputError, match=r"does not exist"):
        ImageFolder("memory://bucket/none.tar")
    with pytest.raises(InputError, match="cannot be read") as raised:
        ImageFolder("nonsense://bucket/a.tar")
    assert "s3://" in str(raised.value.hint)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError, match="Install s3fs") as raised:
        ImageFolder("s3://bucket/a.tar")
    assert raised.value.hint == "pip install 'mavcli[remote]'" and raised.value.exit_code == 4


def test_a_shard_that_shrinks_after_it_was_read_is_said(pairs):
    listing = find_media(pairs / "00.tar", lambda name: name.endswith(".png"))
    place = max(listing.places, key=lambda place: place.offset)
    (pairs / "00.tar").write_bytes(b"")
    with pytest.raises(InputError, match="ends inside of"):
        read_bytes(place)
