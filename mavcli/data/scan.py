"""What one file holds, found by decoding all of it; run as a process of its own, `python -m mavcli.data.scan`.

Decoders of damaged files crash, loop and eat memory. They do it here, in a process that has a memory limit, says that
it is alive with every second of decoding, ends itself when it computes for long without a frame, and is replaced when it is
gone (see `mavcli.data.index`).

Jobs come as lines of JSON on stdin, one of `{"id", "path", "offset", "size", "cell", "kind"}`; answers go out the same way,
`{"id", "frames"}` while a job runs and `{"id", "facts"}` at its end. Facts are a flat dictionary: `reason` alone for a
file that cannot be used, else what `video_facts` and `image_facts` say.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import stat
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from mavcli.data.places import Place, media
from mavcli.errors import InputError, NotReadError, OutOfMemoryError
from mavcli.files import file_sha256
from mavcli.media.image import read_image
from mavcli.media.scenes import Scenes
from mavcli.media.video import Damage, Media, read_video, survey

MAX_FRAMES = 500_000
"""Of one file: four hours at 30 frames a second."""
MAX_FPS = 1000
PATIENCE = 30.0
"""Seconds of computing without a new frame after which a decoder ends itself."""
MEMORY = 4 << 30
"""Bytes of address space that one decoder may take."""

Facts = dict[str, Any]
_TICKS = 10_000_000  # times are kept to 0.1 microseconds, far below any container's clock


def video_facts(media: Media, *, alive: Callable[[int], None] | None = None) -> Facts:
    """times (packed), rate, vfr, start, keyframes (packed indices), seekable, sizes, codec, cuts, static, warnings.

    `alive(frames)` is called with each decoded frame. Raises InputError.
    """
    scenes = Scenes()
    count = 0

    def see(frame: VideoFrame) -> None:
        nonlocal count
        scenes.see(frame)
        count += 1
        if alive is not None:
            alive(count)

    found = survey(media, visit=see, max_frames=MAX_FRAMES)
    next(read_video(media, max_frames=1))  # some colour spaces decode and have no way to RGB
    if found.fps > MAX_FPS:
        raise InputError(f"shows {found.fps:.0f} frames a second by its timestamps, wanted at most {MAX_FPS}")
    return {
        "times": pack(np.rint(found.times * _TICKS).astype(np.int64)),
        "rate": str(found.rate),
        "vfr": found.vfr,
        "start": found.start,
        "keyframes": pack(found.keyframes.astype(np.int64)),
        "seekable": found.seekable,
        "width": found.width,
        "height": found.height,
        "codec": found.codec,
        "cuts": scenes.cuts,
        "static": scenes.static and len(found.times) > 1,
        "warnings": list(found.warnings),
    }


def image_facts(media: str | os.PathLike[str] | bytes) -> Facts:
    """width and height of a picture that decodes, as it is read, and what there is to say of it. Raises InputError."""
    notes: list[str] = []
    picture = read_image(media, notes=notes)
    return {"width": picture.shape[1], "height": picture.shape[0], "warnings": notes}


def pack(numbers: NDArray[np.int64]) -> str:
    """Ascending whole numbers as text; those of evenly spaced frames take a few bytes."""
    return base64.b64encode(zlib.compress(np.diff(numbers, prepend=0).astype("<i8").tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.int64]:
    """The numbers of `pack`. Raises ValueError or zlib.error for what is none of it."""
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8"))


def unpack_times(text: str) -> NDArray[np.float64]:
    """Seconds, of what `video_facts` packed."""
    return unpack(text) / _TICKS


def scan(place: Place, kind: str, *, alive: Callable[[int], None] | None = None) -> Facts:
    """The facts of a place and the SHA-256 of its bytes.

    What cannot be used gives `{"reason"}`, in words that go on after its name; what could not be read this time has
    `"passing": True` too, and says nothing of the bytes. A file is called damaged only when all its bytes could be read
    and a second look found the same.
    """
    first = _look(place, kind, alive)
    if "passing" in first or not _faulty(first):
        return first
    second = _look(place, kind, alive)
    if second == first or "passing" in second or not _faulty(second):
        return second
    return passing("it decodes to something else each time")


def passing(why: str) -> Facts:
    """What is known of a file that could not be read this time: nothing."""
    return {"reason": f"could not be read this time: {why}", "passing": True}


def _faulty(facts: Facts) -> bool:
    return "reason" in facts or any(isinstance(warning, Damage) for warning in facts.get("warnings", ()))


def _look(place: Place, kind: str, alive: Callable[[int], None] | None) -> Facts:
    found: Path | bytes | None = None
    try:
        found = media(place)
        if isinstance(found, Path) and not stat.S_ISREG(os.stat(found).st_mode):  # a pipe would be waited for
            return {"reason": "is not a regular file"}
        facts = video_facts(found, alive=alive) if kind == "video" else image_facts(found)
        facts["sha256"] = _sha256(found, alive)
    except (NotReadError, OutOfMemoryError) as error:
        return passing(_without_names(error.message, place).removeprefix("cannot read : "))
    except InputError as error:
        facts = {"reason": _without_names(error.message, place)}
    except MemoryError:
        return passing("out of memory")
    except ImportError as error:  # no file handle was left for it
        return passing(str(error))
    except OSError as error:
        return passing((error.strerror or str(error)).lower())
    except Exception as error:  # a damaged file must not end the whole scan; the table shows what it did
        facts = {"reason": f"makes the decoder fail: {type(error).__name__}: {error}"[:200]}
    if "reason" in facts and found is not None:
        try:
            _sha256(found, alive)
        except OSError as error:  # what a decoder calls damage may be a disk that fails
            return passing((error.strerror or str(error)).lower())
    return facts


def _without_names(words: str, place: Place) -> str:
    for name in (place.path, "video", "image"):
        words = words.replace(f"`{name}`", "", 1)
    return " ".join(words.split())


def _sha256(media: Path | bytes, alive: Callable[[int], None] | None) -> str:
    if isinstance(media, bytes):
        return hashlib.sha256(media).hexdigest()
    return file_sha256(media, advance=None if alive is None else lambda _: alive(0))


def _work() -> None:
    """Answer jobs until stdin ends."""
    with suppress(ImportError, ValueError, OSError):  # macOS has the name and no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer

    def answer(value: Facts) -> None:
        out.write(json.dumps(value).encode() + b"\n")
        out.flush()

    def wait_again() -> None:
        # of computing, not of the clock: a busy machine, or one that slept, makes no file damaged
        with suppress(AttributeError):  # Windows has no such timer
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)

    for line in sys.stdin.buffer:
        job = json.loads(line)
        spoke = time.monotonic()
        wait_again()

        def alive(frames: int, number: int = job["id"]) -> None:
            nonlocal spoke
            if time.monotonic() - spoke > 1:
                spoke = time.monotonic()
                wait_again()
                answer({"id": number, "frames": frames})

        cell = job["cell"] and tuple(job["cell"])
        place = Place("", job["path"], job["offset"], job["size"], cell)
        facts = scan(place, job["kind"], alive=alive)
        answer({"id": job["id"], "facts": facts})


if __name__ == "__main__":
    _work()
