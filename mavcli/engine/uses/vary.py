"""Another video with the meaning of one: of each of its frames an embedding is kept, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from mavcli.engine.cascade import Cascade
from mavcli.engine.compose import network_view
from mavcli.media.frames import Fit, Frames, to_float
from mavcli.media.video import read_video

_AT_ONCE = 64


def meaning(cascade: Cascade, source: Path | Frames, *, fit: Fit) -> Tensor:
    """The mean CLIP image embedding (1, d) of a video's frames, read as they come, or of pictures (f, h, w, 3), each at the size
    that CLIP reads.

    Raises InputError.
    """
    total, count = None, 0
    seen: list[Frames] = []

    def add() -> None:
        nonlocal total, count
        embedded = cascade.embed_frames(to_float(np.concatenate(seen)))
        total = embedded.double().sum(0, keepdim=True) + (0 if total is None else total)
        count += len(embedded)
        seen.clear()

    frames = (frame for _, frame in read_video(source)) if isinstance(source, Path) else iter(source)
    for frame in frames:
        seen.append(network_view(frame[None], cascade.look, fit))
        if len(seen) == _AT_ONCE:
            add()
    if seen:
        add()
    assert total is not None
    return (total / count).float()
