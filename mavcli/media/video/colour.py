"""Frames to RGB and back (swscale): the matrix, the range and the gamut, without a bias.

swscale's default way from YUV to RGB cuts off fractions three times: every picture comes out 1.1 to 1.4 of 255 too dark, and
once more with each generation. Full chroma interpolation with accurate rounding leaves less than 0.1.

h w pixels; RGB is uint8 `h w 3` with the primaries of BT.709, which are those of sRGB.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mavcli.media.frames import Frames
from mavcli.media.image import WHITE

# The flags of libswscale/swscale.h: PyAV names the second of the three below from 18.0 on only.
_FULL_CHROMA, _ACCURATE_ROUNDING, _FULL_CHROMA_INPUT = 1 << 13, 1 << 18, 1 << 14
EXACT = _FULL_CHROMA | _ACCURATE_ROUNDING | _FULL_CHROMA_INPUT
BILINEAR, BICUBIC, AREA = 1 << 1, 1 << 2, 1 << 5

_FULL = 2
BT709, BT601 = 1, 5
"""Of `src_colorspace`, which is `SWS_CS_*`."""
_UNSPECIFIED = 2
HD_WIDTH, HD_HEIGHT = 1280, 720
"""From here on a video without tags is BT.709, as players decide; smaller ones are BT.601."""
_JPEG_FORMATS = ("yuvj420p", "yuvj422p", "yuvj444p", "yuvj440p", "yuvj411p")
_UNKNOWN_MATRICES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp"}

_TRANSFERS_HDR = {16: "PQ", 18: "HLG"}
_GAMUTS = {  # chromaticities x, y of red, green, blue and white (ITU-T H.273, table 2)
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290))),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351))),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290))),
}
_BT709_GAMUT = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290))
# What a screen makes of a value (BT.1886 for the camera curves of BT.709 and its kin); sRGB apart, see `_linear`.
_GAMMAS = {1: 2.4, 2: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 14: 2.4, 15: 2.4}
_SRGB = 13

_PYAV_16 = int(av.__version__.split(".")[0]) < 17
# 16 scales with one thread and has no such argument; more threads would only pay for pictures of many megapixels
_ONE_THREAD: dict[str, Any] = {} if _PYAV_16 else {"threads": 1}


def reformatted(reformatter: VideoReformatter, frame: VideoFrame, **wanted: Any) -> VideoFrame:
    """`VideoReformatter.reformat` in one thread, with every PyAV that is allowed."""
    return reformatter.reformat(frame, **wanted, **_ONE_THREAD)


class Rgb:
    """Frames of one video as RGB; `notes` says what could not be shown as it is meant."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tags = (_UNSPECIFIED, _UNSPECIFIED)
        """Primaries and transfer of the stream: PyAV 16 does not have them of a frame."""
        self._reformatter = VideoReformatter()
        self._looked_at: tuple[object, ...] = ()
        self._alpha = False
        self._from: dict[str, int] = {}
        self._lut: ImageFilter.Color3DLUT | None = None

    def __call__(self, frame: VideoFrame, width: int, height: int, out: Frames | None = None) -> Frames:
        """A frame as uint8 (height, width, 3), transparency on white, in `out` where that is given.

        Raises what PyAV raises for what it cannot convert.
        """
        self.look(frame)
        same = (width, height) == (frame.width, frame.height)
        planar = reformatted(
            self._reformatter,
            frame,
            width=width,
            height=height,
            format="gbrap"
            if self._alpha
            else "gbrp",  # swscale has vector code for planes, not for packed RGB
            interpolation=(BILINEAR if same else BICUBIC) | EXACT,
            **self._from,
        )
        planes = [_plane(plane, width, height) for plane in planar.planes]
        picture: Frames = np.empty((height, width, 3), np.uint8) if out is None else out
        for channel, plane in enumerate((2, 0, 1)):  # the planes are green, blue, red
            picture[..., channel] = planes[plane]
        if self._alpha:
            opacity = planes[3][..., None].astype(np.uint16)
            white = np.array(WHITE, np.uint16)
            picture[...] = (picture * opacity + white * (255 - opacity) + 127) // 255
        if self._lut is not None:
            picture[...] = np.asarray(Image.fromarray(picture).filter(self._lut))
        return picture

    def look(self, frame: VideoFrame) -> None:
        """Decide how frames like this one are converted, and note what that leaves out."""
        primaries = getattr(frame, "color_primaries", self.tags[0])
        transfer = getattr(frame, "color_trc", self.tags[1])
        tags = (int(frame.colorspace), int(primaries), int(transfer))
        seen = (frame.format.name, frame.width, frame.height, *tags)
        if seen == self._looked_at:
            return
        self._looked_at = seen
        matrix, primaries, transfer = tags
        pixels = frame.format
        self._alpha = pixels.has_palette or any(component.is_alpha for component in pixels.components)
        coded = not (pixels.is_rgb or pixels.has_palette or len(pixels.components) < 3)
        self._from = {}
        if coded and matrix == _UNSPECIFIED:
            hd = (frame.width >= HD_WIDTH or frame.height >= HD_HEIGHT) and pixels.name not in _JPEG_FORMATS
            self._from["src_colorspace"] = BT709 if hd else BT601
        elif coded and matrix in _UNKNOWN_MATRICES:
            self._note(
                f"the video's colours are coded as {_UNKNOWN_MATRICES[matrix]}; they are shown as BT.601"
            )
            self._from["src_colorspace"] = BT601
        if (
            coded and _PYAV_16
        ):  # which looks at a matrix and a range only where the two sides differ in what is said
            full = frame.color_range == _FULL or pixels.name in _JPEG_FORMATS
            self._from.setdefault("src_colorspace", BT601 if matrix == 6 else matrix)
            self._from |= {"dst_colorspace": BT601, "src_color_range": 2 if full else 1, "dst_color_range": 1}
        self._lut = None
        if transfer in _TRANSFERS_HDR:
            self._note(
                f"the video is HDR ({_TRANSFERS_HDR[transfer]}); its colours are shown without tone mapping"
            )
        elif primaries in _GAMUTS:
            if transfer in _GAMMAS or transfer == _SRGB:
                self._lut = _to_bt709(primaries, transfer)
            else:
                self._note(
                    f"the video's colours are {_GAMUTS[primaries][0]}; they are shown without conversion"
                )

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


class ToYuv420:
    """RGB frames of one size as yuv420p: BT.709, limited range, chroma where H.264 has it unless it says otherwise (left)."""

    def __init__(self, width: int, height: int, time_base: Fraction) -> None:
        # a filter, since PyAV's reformatter puts chroma in the middle: it would move by a fifth of a pixel each generation
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base
        )
        scale = self._graph.add(
            "scale",
            "flags=bicubic+accurate_rnd+full_chroma_inp+full_chroma_int:out_color_matrix=bt709:out_range=limited:"
            "out_primaries=bt709:out_transfer=bt709:out_chroma_loc=left",
        )
        pixels, sink = self._graph.add("format", "pix_fmts=yuv420p"), self._graph.add("buffersink")
        source.link_to(scale)
        scale.link_to(pixels)
        pixels.link_to(sink)
        self._graph.configure()

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        """The same picture at the same time."""
        self._graph.push(frame)
        out = self._graph.pull()
        assert isinstance(out, VideoFrame)
        return out


def _plane(plane: Any, width: int, height: int) -> NDArray[np.uint8]:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]


@functools.cache
def _to_bt709(primaries: int, transfer: int) -> ImageFilter.Color3DLUT:
    """Values of a wide gamut -> values of BT.709 with the same curve; colours outside are cut to its edge."""
    matrix = np.linalg.inv(_to_xyz(_BT709_GAMUT)) @ _adapted(_to_xyz(_GAMUTS[primaries][1]))
    side = 65  # Pillow's largest
    axis = np.linspace(0.0, 1.0, side)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red runs fastest
    linear = _linear(np.stack([red, green, blue], -1), transfer) @ matrix.T
    table = _curved(np.clip(linear, 0.0, 1.0), transfer)
    return ImageFilter.Color3DLUT(side, table.reshape(-1).tolist())


def _to_xyz(gamut: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """(3, 3) linear RGB -> CIE XYZ (SMPTE RP 177)."""
    red, green, blue, white = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in gamut)
    columns = np.stack([red, green, blue], -1)
    scaled: NDArray[np.float64] = columns * np.linalg.solve(columns, white)
    return scaled


def _adapted(to_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same with its white moved to D65 (Bradford)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    white = bradford @ to_xyz.sum(1)
    wanted = bradford @ _to_xyz(_BT709_GAMUT).sum(1)
    moved: NDArray[np.float64] = np.linalg.inv(bradford) @ np.diag(wanted / white) @ bradford @ to_xyz
    return moved


def _linear(values: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    if transfer == _SRGB:
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.asarray(values ** _GAMMAS[transfer])


def _curved(light: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    if transfer == _SRGB:
        return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(light ** (1 / _GAMMAS[transfer]))
