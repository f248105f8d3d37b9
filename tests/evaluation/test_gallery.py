"""The gallery: what it tells of each video, and how it behaves in a real browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from browser import Browser

from mavcli.cli.app import run
from mavcli.evaluation.described import described_videos
from mavcli.evaluation.gallery import gallery_page
from mavcli.evaluation.playable import COPIES, h264_copy, why_unplayed
from mavcli.media.video import find_sound, probe, read_clip, write_gif, write_video


def put(path: Path, prompt: str | None, seed: int = 0, *, inside: bool = False) -> Path:
    """A short clip with a sidecar, or (`inside`) with the same in its tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video = np.full((8, 32, 32, 3), (40 * seed % 256, 120, 200), np.uint8)
    run_facts = {
        "mav_run": 1,
        "kind": "generate",
        "prompt": prompt,
        "seed": seed,
        "frames": 8,
        "fps": "24000/1001",
    }
    run_facts |= {"width": 32, "height": 32, "recipe": {"name": "pocket"}, "random_weights": []}
    write_video(path, video, fps=24, metadata={"mav_run": json.dumps(run_facts)} if inside else None)
    if prompt is not None and not inside:
        path.with_suffix(".json").write_text(json.dumps(run_facts))
    return path


def told_by(page: str) -> list[dict[str, object]]:
    inner = page.split('<script type="application/json" id="videos">')[1].split("</script>")[0]
    found: list[dict[str, object]] = json.loads(
        inner, parse_constant=pytest.fail
    )  # NaN is no JSON in a browser
    return found


def test_prompt_and_seed_come_from_the_sidecar_or_the_file_itself(tmp_path: Path) -> None:
    put(tmp_path / "b.mp4", "a dog", 4)
    put(tmp_path / "sub" / "ä #1.mp4", "a cat", 5, inside=True)
    put(tmp_path / "bare.mp4", None)
    found = told_by(gallery_page(described_videos(tmp_path), page=tmp_path / "gallery.html", title="x"))
    assert [(v["name"], v["prompt"], v["seed"]) for v in found] == [
        ("b", "a dog", 4),
        ("bare", None, None),
        ("sub/ä #1", "a cat", 5),
    ]
    assert found[2]["src"] == "sub/%C3%A4%20%231.mp4"
    assert (found[0]["fps"], found[0]["seconds"], found[0]["recipe"]) == (23.976, 0.33, "pocket")


def test_a_prompt_cannot_write_into_the_page(tmp_path: Path) -> None:
    put(tmp_path / "x.mp4", "</script><script>alert(1)</script>")
    page = gallery_page(described_videos(tmp_path), page=tmp_path / "g.html", title="<b>&")
    assert "<script>alert" not in page and "<h1>&lt;b&gt;&amp;</h1>" in page
    assert told_by(page)[0]["prompt"] == "</script><script>alert(1)</script>"


def test_the_page_may_lie_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "made" / "x.mp4", "a dog")
    (tmp_path / "pages").mkdir()
    assert run(["gallery", str(tmp_path / "made"), "-o", str(tmp_path / "pages" / "g.html"), "-q"]) == 0
    assert told_by((tmp_path / "pages" / "g.html").read_text())[0]["src"] == "../made/x.mp4"


def test_an_older_gallery_is_replaced_and_another_page_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "x.mp4", "a dog")
    for _ in range(2):
        assert run(["gallery", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {
        "page": str(tmp_path / "gallery.html"),
        "videos": 1,
        "prompts": 1,
        "unplayed": {},
        "faults": [],
    }
    (tmp_path / "gallery.html").write_text("my page")
    assert run(["gallery", str(tmp_path)]) == 6
    assert (tmp_path / "gallery.html").read_text() == "my page"
    assert run(["gallery", str(tmp_path), "--force", "-q"]) == 0


@pytest.mark.parametrize(("name", "code"), [("none", 4), ("x.mp4", 4), ("empty", 4)])
def test_what_is_no_folder_of_videos_is_one_line(
    tmp_path: Path, name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "x.mp4", "a dog")
    (tmp_path / "empty").mkdir()
    assert run(["gallery", str(tmp_path / name)]) == code
    assert capsys.readouterr().err.startswith("error: ")


SIDECARS = {
    "cut": (b"{", "cut.json` is no JSON that can be read, left out"),
    "deep": (b"[" * 200_000, "deep.json` is no JSON that can be read, left out"),
    "digits": (b'{"mav_run": 1, "seed": ' + b"9" * 100_000 + b"}", "digits.json` is no JSON"),
    "huge": (b'{"mav_run": 1, "x": "' + b"y" * (9 << 20) + b'"}', "huge.json` is larger than the 8 MiB"),
    "latin": (b'{"prompt": "\xe4"}', "latin.json` is no UTF-8 text, left out"),
    "list": (b'[{"prompt": "a dog"}]', "list.json` is of another program and tells no `prompt`, left out"),
    "other": (b'{"version": "1.4", "entries": {}}', "other.json` is of another program"),
}


def test_a_sidecar_that_tells_nothing_is_left_out_by_name_and_the_page_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (data, _) in SIDECARS.items():
        put(tmp_path / f"{name}.mp4", None)
        (tmp_path / f"{name}.json").write_bytes(data)
    put(tmp_path / "pipe.mp4", None)
    os.mkfifo(tmp_path / "pipe.json")
    put(tmp_path / "folder.mp4", None)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "sound.mp4")
    put(tmp_path / "good.mp4", "a dog")
    assert run(["gallery", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (
        told["videos"] == len(SIDECARS) + 3
        and told["prompts"] == 1
        and len(told["faults"]) == len(SIDECARS) + 3
    )
    for text in [
        *(text for _, text in SIDECARS.values()),
        "pipe.json` is no regular file",
        "sound.mp4` is no regular file",
    ]:
        assert sum(text in line for line in told["faults"]) == 1, text
    assert shown.err.count("warning: ") == 6 and "5 more are left out" in shown.err
    page = told_by((tmp_path / "gallery.html").read_text())
    assert [video["name"] for video in page if video["prompt"]] == ["good"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("NaN", None),
        ("1e400", None),
        ("-Infinity", None),
        ('"1e999999999"', None),
        ('"1/0"', None),
        ('"9"', 9),
        ('"24000/1001"', 23.976),
        ("9223372036854775807", "9223372036854775807"),
        ("1" * 4000, None),
        ('{"deep": [1]}', None),
        ("true", None),
        ('"<b>1</b>"', None),
    ],
)
def test_a_number_that_no_video_has_is_not_shown(tmp_path: Path, said: str, shown: object) -> None:
    put(tmp_path / "x.mp4", None)
    keys = ("seed", "sample", "width", "height", "frames", "fps")
    fields = ", ".join(f'"{key}": {said}' for key in keys)
    (tmp_path / "x.json").write_text(
        f'{{"mav_run": 1, "kind": [], "recipe": {{"name": 5}}, "random_weights": [{said}], {fields}}}'
    )
    page = gallery_page(described_videos(tmp_path), page=tmp_path / "g.html", title="x")
    (video,) = told_by(page)
    assert [video[key] for key in keys] == [shown] * 6
    assert video["kind"] is video["recipe"] is None


def test_a_broken_video_is_left_out_by_name_also_where_copies_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "good.mp4", "a dog")
    broken = put(tmp_path / "broken.mp4", "a cat")
    broken.write_bytes(broken.read_bytes()[:700])
    for options in ([], ["--convert"]):
        assert run(["gallery", str(tmp_path), *options]) == 0
        assert "broken.mp4` is not a video that can be read" in capsys.readouterr().err
        assert [v["name"] for v in told_by((tmp_path / "gallery.html").read_text())] == ["good"]


HOSTILE = (
    "</script><script>hacked = 1</script>",
    "<img src=x onerror=hacked=1>",
    '"><svg onload="hacked=1">',
    "<!--<script>",
    "${hacked = 1}`;hacked=1//",
    "javascript:hacked=1",
    "&lt;b&gt; \u2028 \u2029 ]]>",
    "@VIDEOS@@JS@@TITLE@",
)


def test_no_markup_gets_in_by_a_name_a_prompt_or_a_sidecar(tmp_path: Path) -> None:
    """Eight hostile texts in every field that the page shows, as file names, and as the title."""
    for number, text in enumerate(HOSTILE):
        name = text.replace("/", "\u2215")
        put(tmp_path / f"{number}{name}.mp4", text, number)
        side = tmp_path / f"{number}{name}.json"
        run_facts = json.loads(side.read_text()) | {
            "kind": text,
            "recipe": {"name": text},
            "random_weights": [text],
        }
        side.write_text(json.dumps(run_facts))
    assert run(["gallery", str(tmp_path), "-q", "--title", HOSTILE[0] + HOSTILE[7]]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "gallery.html").as_uri())
        browser.wait("document.querySelectorAll('.cell').length === 8")
        titles = browser.run("[...document.querySelectorAll('.cell b')].map(b => b.textContent)")
        assert titles == list(HOSTILE)
        browser.click(".cell")
        browser.wait("document.getElementById('one').open")
        assert browser.run("typeof hacked") == "undefined"
        assert browser.run("document.querySelectorAll('svg, img, main script, dialog script').length") == 0
        assert browser.run("document.querySelectorAll('script').length") == 2
        assert browser.run("document.querySelector('h1').textContent") == HOSTILE[0] + HOSTILE[7]
        assert browser.errors == []


def test_a_name_that_is_no_utf8_is_shown_and_plays(tmp_path: Path) -> None:
    put(tmp_path / "x.mp4", "a dog")
    for suffix in (b".mp4", b".json"):
        os.rename(os.fsencode(tmp_path / "x") + suffix, os.fsencode(tmp_path) + b"/b\xff\xe4d" + suffix)
    assert run(["gallery", str(tmp_path), "-q"]) == 0
    (video,) = told_by((tmp_path / "gallery.html").read_text())
    assert (video["src"], video["name"], video["prompt"]) == ("b%FF%E4d.mp4", "b\ufffd\ufffdd", "a dog")
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "gallery.html").as_uri())
        browser.wait("document.querySelector('#grid video').readyState >= 2")


def test_videos_play_in_view_alone_and_the_filter_finds_them(tmp_path: Path) -> None:
    for number in range(24):
        put(tmp_path / f"{number:02d}.mp4", f"a {'dog' if number % 3 else 'cat'} number {number}", number)
    assert run(["gallery", str(tmp_path), "-q"]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "gallery.html").as_uri())
        playing = "[...document.querySelectorAll('#grid video')].map(v => !v.paused)"
        browser.wait(f"{playing}[0]")
        seen = browser.run(playing)
        assert 0 < sum(seen) < 24 and not seen[-1]
        assert browser.run("!document.querySelector('#grid .cell:last-child video').src")
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        browser.wait(f"{playing}[23] && !{playing}[0]")
        browser.click("#filter")
        browser.type("CAT seed 1")
        browser.wait("document.getElementById('count').textContent !== '24 videos'")
        shown = browser.run("[...document.querySelectorAll('.cell b')].map(b => b.textContent)")
        assert shown == [f"a cat number {n}" for n in (12, 15, 18, 21)]
        browser.click(".cell")
        browser.wait("document.getElementById('one').open && !document.querySelector('#one video').paused")
        assert "seed" in browser.run("document.querySelector('#one dl').textContent")
        assert browser.errors == []


def mpeg4(path: Path, frames: int = 6) -> Path:
    """What cameras of 2005 write, and no browser plays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def test_what_not_every_browser_plays_is_said_before_a_gallery_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mpeg4(tmp_path / "only" / "old.mp4")
    assert run(["gallery", str(tmp_path / "only")]) == 4
    err = capsys.readouterr().err
    assert "old.mp4` holds MPEG-4 part 2 (mpeg4, yuv420p) in QuickTime / MOV" in err and "--convert" in err
    assert not (tmp_path / "only" / "gallery.html").exists()
    put(tmp_path / "only" / "new.mp4", "a dog")
    write_video(tmp_path / "only" / "lossless.mkv", np.zeros((3, 32, 32, 3), np.uint8), fps=8, codec="ffv1")
    (tmp_path / "only" / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(16))
    assert run(["gallery", str(tmp_path / "only")]) == 0
    err = capsys.readouterr().err
    assert (
        "3 videos not every browser plays, left out" in err
        and "lossless.mkv` holds FFmpeg video codec #1" in err
    )
    assert "cut.mp4` is not a video that can be read" in err
    assert [v["name"] for v in told_by((tmp_path / "only" / "gallery.html").read_text())] == ["new"]


def test_a_gallery_shows_h264_copies_where_it_is_asked_to(tmp_path: Path) -> None:
    mpeg4(tmp_path / "old.mp4")
    (tmp_path / "old.json").write_text(json.dumps({"prompt": "a cat"}))
    put(tmp_path / "new.mp4", "a dog")
    for _ in range(2):  # copies are no videos of their own, and are made once
        assert run(["gallery", str(tmp_path), "--convert", "-q"]) == 0
        shown = told_by((tmp_path / "gallery.html").read_text())
        assert [(v["name"], v["prompt"]) for v in shown] == [("new", "a dog"), ("old", "a cat")]
    (copy,) = (tmp_path / COPIES).iterdir()
    assert shown[1]["src"] == f"{COPIES}/{copy.name}" and why_unplayed(copy) is None
    found = read_clip(copy)
    assert len(found.frames) == 6 and found.rate == 12
    assert [round(float(frame.mean()) / 30) for frame in found.frames] == list(range(6))


def test_uneven_frames_and_sound_are_kept_in_a_copy(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "nasty_made" / "vfr_gap.mkv"
    copy, _ = h264_copy(source, tmp_path)
    assert abs(probe(copy).duration - probe(source).duration) <= 1 / probe(source).fps
    heard = mpeg4(tmp_path / "x.mp4")
    copy, note = h264_copy(shared_data / "cases" / "with_sound.mp4", tmp_path)
    assert note is None and find_sound(copy, origin=0.0) is not None and find_sound(heard, origin=0.0) is None


def test_the_case_of_mpeg4_is_told(shared_data: Path) -> None:
    assert "mpeg4" in (why_unplayed(shared_data / "cases" / "cmp4v.mp4") or "")


def test_a_gif_beside_its_mp4_is_no_second_video(tmp_path: Path) -> None:
    put(tmp_path / "a.mp4", "a dog")
    write_gif(tmp_path / "a.gif", np.zeros((3, 32, 32, 3), np.uint8), fps=8)
    assert [video.path.name for video in described_videos(tmp_path)] == ["a.mp4"]


def test_a_video_of_a_codec_that_nobody_knows_is_told_and_the_page_is_made(tmp_path, capsys):
    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((3, 32, 32, 3), np.uint8), fps=8)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert why_unplayed(path) == "holds a video codec that is not known here"
    put(tmp_path / "b.mp4", "a dog")
    assert run(["gallery", str(tmp_path)]) == 0
    assert "a.mp4" in capsys.readouterr().err and (tmp_path / "gallery.html").is_file()
