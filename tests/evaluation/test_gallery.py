"""The gallery: what it tells of each video, and how it behaves in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from mavcli.cli.app import run
from mavcli.evaluation.described import described_videos
from mavcli.evaluation.gallery import gallery_page
from mavcli.media.video import write_video


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
    found: list[dict[str, object]] = json.loads(inner)
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
    assert told == {"page": str(tmp_path / "gallery.html"), "videos": 1, "prompts": 1}
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


def test_a_sidecar_that_is_no_json_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "x.mp4", None)
    (tmp_path / "x.json").write_text("{")
    assert run(["gallery", str(tmp_path)]) == 4
    assert "x.mp4` is no JSON" in capsys.readouterr().err


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
