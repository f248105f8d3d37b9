"""`mav eval interpolation`: what is kept, what is predicted, and how near that comes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mavcli.cli.app import run
from mavcli.data.clips import VideoFolder
from mavcli.engine.cascade import Cascade
from mavcli.evaluation.interpolation import (
    Clip,
    Figures,
    Measured,
    Predictions,
    blended,
    clips_of,
    compare,
    psnr,
    rows_of,
    ssim,
    true_frames,
)
from mavcli.media.frames import fit, to_float
from mavcli.media.image import read_image, write_png
from mavcli.media.video import write_video

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pans over noise: of 13 frames, of 5, and of 4 frames before a cut and 9 after it."""
    root = tmp_path_factory.mktemp("videos")
    for name, count in (("long", 13), ("short", 5), ("cut", 13)):
        small = np.random.default_rng(len(name)).integers(60, 120, (3, 8, 3), np.uint8)
        wide = fit(small, (24, 64), rule="crop")
        frames = [wide[:, 2 * i : 2 * i + 32] for i in range(count)]
        if name == "cut":
            frames[:4] = [np.full_like(frames[0], 250) // (1 + i % 2) for i in range(4)]
        write_video(root / f"{name}.mkv", np.stack(frames), fps=8, codec="ffv1")
    return root


def test_ssim_is_torchmetrics_inside_the_picture() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 20, 24, generator=generator) * 2 - 1
    b = (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)
    _, whole = torchmetrics.structural_similarity_index_measure(
        (a + 1) / 2, (b + 1) / 2, data_range=1.0, return_full_image=True
    )
    # theirs mirrors the edges, Wang's windows lie inside
    assert ssim(a, b) == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-5)
    assert ssim(a, a) == pytest.approx(1.0) and ssim(a[..., :8, :8], a[..., :8, :8]) == pytest.approx(1.0)


def test_psnr_is_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    a, b = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    theirs = torchmetrics.peak_signal_noise_ratio(a, b, data_range=2.0)
    assert psnr(a, b) == pytest.approx(float(theirs), abs=1e-4) and psnr(a, a) > 120


def test_blending_is_right_where_brightness_changes_evenly_and_nothing_kept_is_counted() -> None:
    even = to_float(
        np.arange(0, 130, 10, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    )
    assert torch.equal(blended(even, 4), even) and torch.equal(blended(even, 2)[::2], even[::2])
    wrong = even.clone()
    wrong[::4] = 1.0  # what is kept may be anything
    assert compare(wrong, even, 4).psnr > 120 > compare(wrong, even, 4).changes
    wrong = even.clone()
    wrong[5] += 0.1
    assert compare(wrong, even, 4).psnr < 60


def test_a_clip_is_the_longest_scene_and_ends_on_a_kept_frame(videos: Path) -> None:
    folder = VideoFolder(str(videos), min_frames=3)
    found = {clip.name: clip for clip in clips_of(folder, longest=9)}
    assert {name: (clip.first, clip.count) for name, clip in found.items()} == {
        "cut": (4, 9), "long": (0, 9), "short": (0, 5)
    }  # fmt: skip
    assert [found["long"].span(skip) for skip in (2, 3, 4, 5, 8)] == [9, 7, 9, 6, 9]
    assert true_frames(folder, found["cut"], size=8).shape == (9, 3, 8, 8)


def test_medians_are_over_clips_and_gains_are_paired() -> None:
    def figures(value: float) -> Figures:
        return Figures(value, value / 100, value)

    measured = [
        Measured(f"{i}", 2, system, figures(base + gain))
        for i, base in enumerate((10.0, 20.0, 60.0))
        for system, gain in (("blending", 0.0), ("↑F", i + 1.0))
    ]
    rows = {row.system: row for row in rows_of(measured)}
    assert rows["blending"].medians["psnr"].value == 20 and rows["blending"].gains == {}
    assert rows["↑F"].medians["psnr"].value == 22
    gain = rows["↑F"].gains["psnr"]
    assert gain.value == 2 and gain.low is not None and gain.low < 2 < gain.high
    alone = rows_of(measured[:2])
    assert alone[1].medians["psnr"].low is None, "one clip has no interval"


def interpolation(tiny: Path, videos: Path, out: Path, *more: str) -> list[str]:
    return [
        "eval",
        "interpolation",
        str(videos),
        "-r",
        str(tiny),
        "-o",
        str(out),
        "--frames",
        "9",
        "--json",
        *more,
    ]


def test_the_command_measures_goes_on_and_tells(
    tiny: Path, videos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores"
    words = interpolation(tiny, videos, out, "--factors", "2,8")
    original, calls = Cascade.interpolate, []

    def counted(self, keys, draws, *, skip, fps):
        calls.append((keys.shape[1], skip, fps))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, keys, draws, skip=skip, fps=fps)

    monkeypatch.setattr(Cascade, "interpolate", counted)
    assert run(words) == 130
    assert len((out / "measured.jsonl").read_text().splitlines()) == 2 and not (out / "scores.json").exists()
    capsys.readouterr()
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    # cut at 2 and 8, long at 2 (twice: the run that stopped, and this) and 8, short at 2 alone
    assert calls == [(5, 2, 8), (2, 8, 8), (5, 2, 8), (5, 2, 8), (2, 8, 8), (3, 2, 8)]
    assert [(row["factor"], row["system"], row["clips"]) for row in told["rows"]] == [
        (2, "blending", 3), (2, "↑F", 3), (8, "blending", 2), (8, "↑F", 2)
    ]  # fmt: skip
    ours = [m["psnr"] for m in told["measured"] if m["system"] == "↑F" and m["factor"] == 2]
    assert told["rows"][1]["medians"]["psnr"][0] == pytest.approx(float(np.median(ours)))
    assert json.loads((out / "scores.json").read_text())["rows"] == told["rows"]
    assert run(words) == 0 and len(calls) == 6, "all is known"
    capsys.readouterr()
    assert run([*words, "--seed", "1"]) == 6
    assert "holds scores of other weights, settings or another seed" in capsys.readouterr().err


def test_frames_of_other_codes_are_a_column_more(
    tiny: Path, videos: Path, tmp_path: Path, capsys: Captured
) -> None:
    kept, film = tmp_path / "kept", tmp_path / "film"
    words = interpolation(tiny, videos, tmp_path / "out", "--factors", "4")
    assert run([*words, "--kept", str(kept)]) == 0
    capsys.readouterr()
    names = sorted(path.name for path in (kept / "x4" / "long").iterdir())
    assert names == ["0000000.png", "0000001.png", "0000002.png"]
    assert read_image(kept / "x4" / "long" / names[0]).shape == (24, 32, 3)
    folder = VideoFolder(str(videos), min_frames=3)
    for clip in clips_of(folder, longest=9):
        if clip.name == "cut":
            continue  # not every code fills in everything
        frames = folder.pictures(clip.number, range(clip.first, clip.first + clip.span(4)))
        for number, frame in enumerate(frames):
            place = film / "x4" / clip.name / "interpolated_frames"
            place.mkdir(parents=True, exist_ok=True)
            write_png(place / f"frame_{number:03d}.png", frame)
    assert run([*words, "--against", f"FILM={film}"]) == 0
    shown = capsys.readouterr()
    rows = {row["system"]: row for row in json.loads(shown.out)["rows"]}
    assert rows["FILM"]["clips"] == 2 and rows["↑F"]["clips"] == 3
    assert rows["FILM"]["medians"]["psnr"][0] > 120, "they are the very frames"
    assert "has nothing of `cut`" in " ".join(shown.err.split())
    (film / "x4" / "long" / "interpolated_frames" / "frame_008.png").unlink()
    assert run([*words, "--against", f"FILM={film}"]) == 4
    assert "has 8 frames, `long` with every 4th of its 9 kept has 9" in " ".join(
        capsys.readouterr().err.split()
    )


def test_predictions_are_found_by_the_clips_name(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "x2").mkdir()
    shutil.copy(videos / "long.mkv", tmp_path / "x2" / "long_2X_16fps.mkv")
    found = Predictions("RIFE", tmp_path, [2, 3])
    clip = Clip("deep/long", 0, "", 0, 13, 8.0)
    assert found.find(clip, 2) == tmp_path / "x2" / "long_2X_16fps.mkv" and found.find(clip, 3) is None
    frames = found.frames(clip, 2, size=8)
    assert frames.shape == (13, 3, 8, 8)
    first = VideoFolder(str(videos), min_frames=3)
    number = [source.name for source in first.sources].index("long.mkv")
    assert torch.equal(frames[0], to_float(fit(first.pictures(number, [0])[0], 8)[None])[0])


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--factors", "1"], 2, "--factors 1, wanted whole numbers from 2 on"),
        (["--factors", "2-16"], 2, "↑F sees 16 frames at once, at most 15"),
        (["--against", "FILM"], 2, "--against FILM, wanted NAME=DIR"),
        (["--against", "FILM=nowhere"], 4, "holds no folder `x2`"),
        (["--count", "9"], 4, "has 3 usable clips, 9 are wanted"),
    ],
)
def test_wrong_words_are_one_line(more, code, told, tiny, videos, tmp_path, capsys) -> None:
    assert run(interpolation(tiny, videos, tmp_path / "out", *more)) == code
    assert told in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()
