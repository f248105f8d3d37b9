"""60 seconds of 1080p through `mav vary`, `extrapolate` and `interpolate`: memory, length, and sound that stays with the picture.

    pip install imageio-ffmpeg     # the program ffmpeg, which makes the clip and reads the results: another reader than mav's
    python benchmarks/long_clip.py --fps 24

The clip has a tone that is heard for a tenth of a second at each whole second. One step of ↑F is enough to see that it goes through.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RATE = 44100


def ffmpeg(*arguments: object) -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def beeps(path: Path) -> np.ndarray:
    """Seconds of the video at which a tone sets in, as ffmpeg hears them; silence before the sound begins counts."""
    sound = ffmpeg(
        "-i", path, "-af", "aresample=async=1:first_pts=0", "-ac", 1, "-ar", RATE, "-f", "s16le", "-"
    )
    loud = np.abs(np.frombuffer(sound, np.int16).astype(int)) > 3000
    at = np.flatnonzero(loud)
    return at[np.diff(at, prepend=-RATE) > RATE // 4] / RATE


def frames_of(path: Path) -> int:
    """How many frames ffmpeg decodes."""
    sizes = ffmpeg("-i", path, "-map", "0:v:0", "-vf", "scale=2:2", "-f", "rawvideo", "-pix_fmt", "gray", "-")
    return len(sizes) // 4


def write_clip(path: Path, fps: int, seconds: int) -> None:
    """Waves that wander over 1920 x 1080 pixels and come back every two seconds: those are encoded once and repeated."""
    import imageio_ffmpeg

    loop = path.with_name("loop.mp4")
    y, x = np.mgrid[:1080, :1920].astype(np.float32)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-s",
        "1920x1080",
    ]
    command += [
        "-r",
        str(fps),
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-pix_fmt",
        "yuv420p",
        str(loop),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number in range(2 * fps):
            turn = np.pi * number / fps
            wave = (
                np.sin(x / 61 + 2 * np.sin(turn)) * np.cos(y / 47 - 2 * np.cos(turn))
                + np.sin((x + y) / 9) / 4
            )
            process.stdin.write((128 + 80 * wave).astype(np.uint8).tobytes())
    ffmpeg(
        "-stream_loop", -1, "-i", loop, "-f", "lavfi", "-i", f"aevalsrc='0.5*sin(2*PI*880*t)*lt(mod(t,1),0.1)':s={RATE}",
        "-t", seconds, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac", path,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fps", type=int, default=24, help="frames a second of the clip")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--only", nargs="*", default=["vary", "extrapolate", "interpolate"], help="which commands"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        count = options.fps * options.seconds
        write_clip(clip, options.fps, options.seconds)
        given = beeps(clip)
        runs = {
            "vary": (("--frames", 16), 16, 24, None),
            "extrapolate": (
                ("--frames", 8, "--direction", "backward"),
                count + 8,
                options.fps,
                8 / options.fps,
            ),
            "interpolate": (("--factor", 2), 2 * count, 2 * options.fps, 0.0),
        }
        print(
            "| command | exit | peak memory, MiB | frames | wanted | length, s | sound off by, ms | minutes |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for verb in options.only:
            more, frames, fps, shift = runs[verb]
            out = Path(folder) / f"{verb}.mp4"
            command = [sys.executable, "-m", "mavcli", verb, str(clip), *map(str, more), "-o", str(out)]
            command += ["--set", "cascade.interp.sampler.steps=1", "--set", "output.sheet=false", "-q"]
            began = time.monotonic()
            process = subprocess.Popen(command)
            _, status, used = os.wait4(process.pid, 0)
            minutes = (time.monotonic() - began) / 60
            found = frames_of(out)
            off = "-"
            if shift is not None:
                heard = beeps(out)
                same = len(heard) == len(given)
                off = f"{1000 * np.abs(heard - given - shift).max():.1f}" if same else "other beeps"
            code = os.waitstatus_to_exitcode(status)
            peak = used.ru_maxrss // 1024
            print(
                f"| {verb} | {code} | {peak} | {found} | {frames} | {found / fps:.3f} | {off} | {minutes:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
