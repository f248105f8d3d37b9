"""Video files in and out (PyAV). Untrusted files end in one InputError; results are written whole or not at all."""

from mavcli.media.video.read import (
    MAX_CLIP_BYTES,
    Clip,
    Survey,
    VideoInfo,
    frames_at,
    is_video,
    probe,
    read_clip,
    read_metadata,
    read_video,
    survey,
)
from mavcli.media.video.sound import Sound, find_sound
from mavcli.media.video.source import Damage, Media
from mavcli.media.video.times import SAME_TIME, exact_rate, nearest_frames, same_rate
from mavcli.media.video.write import Codec, Written, write_gif, write_video

__all__ = [
    "MAX_CLIP_BYTES",
    "SAME_TIME",
    "Clip",
    "Codec",
    "Damage",
    "Media",
    "Sound",
    "Survey",
    "VideoInfo",
    "Written",
    "exact_rate",
    "find_sound",
    "frames_at",
    "is_video",
    "nearest_frames",
    "probe",
    "read_clip",
    "read_metadata",
    "read_video",
    "same_rate",
    "survey",
    "write_gif",
    "write_video",
]
