#!/bin/sh
# A decoded frame that PyAV was asked the side data of stays in memory until Python looks for cycles.
#
# Guess: a frame is freed when the last name for it is gone, as every frame is that nobody asked anything. But `frame.side_data` is kept by the
# frame, and its entries refer to the frame: a cycle, which reference counting does not free. Python counts objects and not bytes, so a loop
# over 1080p video (3 MB a frame) holds hundreds of frames before it looks. Asking only where it is needed, or `gc.collect()` now and
# then, is the way around.
#
# Seen: av 18.1.0, Python 3.11, 40 frames of 64 x 64: one frame is alive after a loop that asks nothing, all 40 after one that reads
# `frame.side_data`, none after `gc.collect()`. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "av==18.1.0" "numpy==2.4.6" 2>/dev/null
"$folder/venv/bin/python" - "$folder/a.mkv" <<'PYTHON'
import gc
import sys

import av
import numpy as np

with av.open(sys.argv[1], "w") as out:
    stream = out.add_stream("ffv1", rate=10)
    stream.width = stream.height = 64
    for _ in range(40):
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(picture.reformat(format="yuv420p")))
    out.mux(stream.encode(None))
    del picture


def alive(ask):
    """Frames in memory after a loop over all of them, with the search for cycles switched off."""
    gc.collect()
    gc.disable()
    with av.open(sys.argv[1]) as container:
        for frame in container.decode(video=0):
            if ask:
                list(frame.side_data)
    count = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    gc.enable()
    del frame
    gc.collect()
    return count, sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())


plain, asked = alive(False), alive(True)
print(f"av {av.__version__}: alive after a loop, and after gc.collect(): nothing asked {plain}, side data asked {asked}")
assert plain[0] <= 2 and asked[0] >= 40 and asked[1] <= 1, "this has changed"
PYTHON
