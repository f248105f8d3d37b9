"""How sharp neighbouring frames are, and whether colours stay: what `mav interpolate`, `animate` and `extrapolate` make of real
clips and photos, and of the rendered world.

    python benchmarks/detail.py --data ../shared/data
    PYTHONPATH=/path/to/another/checkout python benchmarks/detail.py --data ../shared/data      # the same, of another build
    python benchmarks/detail.py --data ../shared/data --weights /a/copy/of/pocket     # while weights/pocket is being trained

Sharpness is the variance of the Laplacian of the luma. The columns:

- interpolate, ratio: the largest quotient of the sharpness of two neighbouring frames, `--factor 2` (wanted: at most 1.2);
- interpolate, made: dB of the drawn frames against the clip's own, which were left out before (`without` the carried detail is
  `--keep-source`, whose drawn frames are the cascade's alone);
- animate, frame 0: dB of the first frame against the picture fitted to the result's size (wanted: at least 40); ratio: of the
  sharpness of frames 0 and 1, and the largest later on;
- extrapolate, ratio: of the sharpness across the join; colour: how far the mean colour moves there, of 255, at most over the
  channels, and in brackets the largest such step inside the clip's last frames;
- colour: mean over five generations of writing and reading again, of 255 (wanted: within 0.5).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CLIPS = ("dog_fetch_0", "ball_juggle_1", "highway_2", "bed_dog_1", "old_film_office_0")
PHOTOS = (
    "balloon.jpg", "leopard.jpg", "surfer.jpg", "bee.jpg", "puppy-header.jpg",
    "plumeria.jpg", "elephant.jpg", "lizard.png", "hand.jpg",
)  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114])
WEIGHTS: Path | None = None


def sharpness(frame: np.ndarray) -> float:
    luma = frame @ LUMA
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).var()) + 1e-3


def ratios(frames: np.ndarray) -> np.ndarray:
    """Of each frame and the one before: at least 1."""
    return np.exp(np.abs(np.diff(np.log([sharpness(frame) for frame in frames]))))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def mav(*arguments: object) -> None:
    from mavcli.cli.app import run

    more = ["--set", f"weights.dir={WEIGHTS}"] if WEIGHTS else []

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = run([*map(str, arguments), "--set", "output.crf=12", *more, "--force"])
    if code:
        raise SystemExit(said.getvalue())


def read(path: Path) -> np.ndarray:
    from mavcli.media.video import read_clip

    return read_clip(path).frames


def rendered(number: int, *, frames: int, size: int = 256) -> np.ndarray:
    from mavcli.data.world import render_clip, scene_for

    return render_clip(scene_for(5, number, video=True), fps=24, frames=frames, size=size)


def square(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[:, top : top + side, left : left + side]


def of_clip(name: str, frames: np.ndarray, folder: Path) -> dict[str, float]:
    """`frames` at 24 fps, of an odd number."""
    from mavcli.media.video import write_video

    given = folder / f"{name}.mkv"
    write_video(given, frames[::2], fps=12, codec="ffv1", overwrite=True)
    out, bare = folder / f"{name}-x2.mp4", folder / f"{name}-bare.mp4"
    mav("interpolate", given, "-o", out)
    made = read(out)[: len(frames)]
    row: dict[str, float] = {"interpolate ratio": float(ratios(made).max()), "made dB": psnr(made[1::2], square(frames)[1::2])}  # fmt: skip
    try:
        mav("interpolate", given, "--keep-source", "-o", bare)
        row["made dB without"] = psnr(read(bare)[1 : len(frames) : 2], square(frames)[1::2])
    except SystemExit:
        row["made dB without"] = row["made dB"]
    longer = folder / f"{name}-longer.mp4"
    mav("extrapolate", given, "--frames", 8, "-o", longer)
    got, own = read(longer), len(frames[::2])
    means = got.mean((1, 2))
    steps = np.abs(np.diff(means, axis=0)).max(1)
    row["join ratio"] = float(ratios(got[own - 1 : own + 1])[0])
    row["after ratio"] = float(ratios(got[own:]).max())
    row["join colour"], row["clip colour"] = float(steps[own - 1]), float(steps[: own - 1].max())
    return row


def of_picture(name: str, path: Path, folder: Path) -> dict[str, float]:
    from mavcli.engine.compose import network_view
    from mavcli.media.image import read_image

    out = folder / f"{name}-moves.mp4"
    mav("animate", path, "--frames", 12, "-o", out)
    frames = read(out)
    first = network_view(read_image(path)[None], frames.shape[1], "crop")[0]
    steps = ratios(frames)
    return {"frame 0 dB": psnr(frames[0], first), "0 to 1": float(steps[0]), "later": float(steps[1:].max())}


def generations(frames: np.ndarray, folder: Path) -> float:
    """How far the mean colour has moved after five times of writing (crf 12) and reading, of 255."""
    from mavcli.media.video import write_video

    now = frames
    for number in range(5):
        path = folder / f"generation-{number}.mp4"
        write_video(path, now, fps=24, crf=12, overwrite=True)
        now = read(path)
    return float(np.abs(now.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max())


def table(rows: Iterable[tuple[str, dict[str, float]]]) -> None:
    """Print rows as they come."""
    for number, (name, row) in enumerate(rows):
        if not number:
            print("\n| | " + " | ".join(row) + " |\n| --- |" + " ---: |" * len(row))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="a folder with `clips` and `photos`"
    )
    parser.add_argument("--only", type=int, default=5, help="how many clips and pictures of each kind")
    parser.add_argument("--keep", type=Path, help="leave the results in this folder")
    parser.add_argument("--weights", type=Path, help="the family's folder, where it is not the recipe's")
    parts = ("clips", "pictures", "colour")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    options = parser.parse_args()
    global WEIGHTS
    WEIGHTS = options.weights and options.weights.resolve()
    from mavcli.media.image import write_png

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clips = {name: read(options.data / "clips" / f"{name}.mp4")[:9] for name in CLIPS[: options.only]}
        clips |= {f"world {i}": rendered(i, frames=9) for i in range(options.only)}
        if "clips" in options.parts:
            table((name, of_clip(name.replace(" ", "-"), frames, folder)) for name, frames in clips.items())
        if "pictures" in options.parts:
            pictures = {name: options.data / "photos" / name for name in PHOTOS}
            for i in range(options.only):
                pictures[f"world {i}"] = folder / f"world-{i}.png"
                write_png(pictures[f"world {i}"], rendered(i, frames=1)[0], overwrite=True)
            table((name, of_picture(name.replace(" ", "-"), path, folder)) for name, path in pictures.items())
        if "colour" in options.parts:
            table((name, {"five generations": generations(one, folder)}) for name, one in clips.items())


if __name__ == "__main__":
    main()
