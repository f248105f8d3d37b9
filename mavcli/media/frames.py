"""Pixels as arrays: value ranges, sizes, hashes and contact sheets. The only place that knows value ranges.

f frames, h w pixels. Files hold uint8 `f h w 3` in 0..255; networks see float32 `f c h w` in [-1, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mavcli.errors import DivergedError, InputError

if TYPE_CHECKING:
    import torch

Frames = NDArray[np.uint8]
"""uint8 `f h w 3`, or `h w 3` for one picture."""

Fit = Literal["crop", "pad"]
"""`crop`: scale until the picture covers the target, cut the centre. `pad`: scale until it lies inside, fill the rest."""

Kernel = Literal["nearest", "area", "bilinear", "bicubic", "lanczos"]

_PIL_KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_float(frames: Frames | torch.Tensor) -> torch.Tensor:
    """uint8 (f, h, w, 3) in 0..255 -> float32 (f, 3, h, w) in [-1, 1], contiguous; `to_uint8` is its exact inverse."""
    import torch  # two seconds; reading and writing files does without it

    x = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"expected uint8 frames `f h w 3`, got {x.dtype} of shape {tuple(x.shape)}")
    if x.device.type != "cpu":
        return (
            x.permute(0, 3, 1, 2)
            .to(torch.float32, memory_format=torch.contiguous_format)
            .div_(127.5)
            .sub_(1.0)
        )
    out = torch.empty((x.shape[0], 3, x.shape[1], x.shape[2]), dtype=torch.float32)
    for i, frame in enumerate(x):  # frame by frame: a whole clip in a second layout would double the memory
        out[i].copy_(frame.permute(2, 0, 1))
        out[i].div_(127.5).sub_(1.0)
    return out


def to_uint8(x: torch.Tensor) -> Frames:
    """float (f, 3, h, w) in [-1, 1] -> uint8 numpy (f, h, w, 3), rounded to nearest, clamped; any device and dtype.

    Raises DivergedError where a frame holds nan or inf: such a frame would otherwise become a picture of noise.
    """
    import torch  # see to_float

    if not x.is_floating_point() or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"expected float frames `f 3 h w`, got {x.dtype} of shape {tuple(x.shape)}")
    out = np.empty((x.shape[0], x.shape[2], x.shape[3], 3), np.uint8)
    for i, frame in enumerate(x.detach()):
        scaled = (
            frame.to(torch.float32, copy=True).mul_(127.5).add_(127.5)
        )  # copy: the caller's frame stays as it is
        if not bool(torch.isfinite(scaled).all()):
            raise DivergedError(
                f"frame {i} of {x.shape[0]} holds values that are not finite",
                hint="use `float32` for the networks; half precision overflows first",
            )
        pixels = scaled.round_().clamp_(0, 255).to(torch.uint8)
        out[i] = pixels.permute(1, 2, 0).cpu().numpy()
    return out


def fit(frames: Frames, size: int | tuple[int, int], *, rule: Fit = "crop", kernel: Kernel = "bicubic",
        fill: tuple[int, int, int] = (0, 0, 0)) -> Frames:  # fmt: skip
    """Bring pictures to `size` without distorting them: (f, h, w, 3) or (h, w, 3) -> the same rank, uint8.

    `size` is one side of a square or (height, width). `crop` scales until the shorter side covers the target and cuts
    the centre; `pad` scales until the longer side fits and fills the rest with `fill`. Antialiased downwards.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames.ndim == 3:
        return fit(frames[None], (height, width), rule=rule, kernel=kernel, fill=fill)[0]
    _check(frames)
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    out = np.empty((len(frames), height, width, 3), np.uint8)
    if rule == "crop":
        scale = max(height / h, width / w)
        cut_w, cut_h = width / scale, height / scale  # source pixels that survive, possibly a fraction
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + cut_w, float(w)), min(top + cut_h, float(h)))
        for i, frame in enumerate(frames):
            out[i] = np.asarray(_pil_resize(frame, (width, height), kernel, box))
        return out
    scale = min(height / h, width / w)
    inner_h, inner_w = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
    top_px, left_px = (height - inner_h) // 2, (width - inner_w) // 2
    out[:] = fill
    for i, frame in enumerate(frames):
        inner = np.asarray(_pil_resize(frame, (inner_w, inner_h), kernel))
        out[i, top_px : top_px + inner_h, left_px : left_px + inner_w] = inner
    return out


def resize(x: torch.Tensor, size: int | tuple[int, int], *, kernel: Kernel = "bilinear") -> torch.Tensor:
    """Resample the last two axes (..., h, w) of a float tensor to `size` (a side, or (height, width)).

    Separable, antialiased downwards, weights sum to one, so constants and ranges of `area` and `bilinear` are kept;
    `bicubic` and `lanczos` may overshoot slightly. Same taps as Pillow's. Any leading axes, device and float dtype.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if x.shape[-1] != width:
        x = x @ _taps(x.shape[-1], width, kernel, x).T
    if x.shape[-2] != height:
        x = _taps(x.shape[-2], height, kernel, x) @ x
    return x


def frames_sha256(frames: Frames | Iterable[Frames]) -> str:
    """Hex SHA-256 of the raw RGB bytes, frame after frame, before any encoding: the identity of a result.

    The same as of `ffmpeg -i clip.mkv -f rawvideo -pix_fmt rgb24 -` for a lossless file.
    """
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def contact_sheet(frames: Frames, *, columns: int | None = None, fps: float | None = None,
                  labels: Sequence[str] | None = None, cell: int | None = None,
                  background: tuple[int, int, int] = (24, 24, 24)) -> Frames:  # fmt: skip
    """All frames (f, h, w, 3) on one uint8 picture (H, W, 3), row by row, a small time label under each.

    `columns` defaults to at most 8; `fps` labels frame i with i / fps seconds, `labels` gives the words instead,
    with neither the frame number stands there. `cell` is the width of one picture in pixels: by default the frame's
    own, but 96 to 256. Frames that grow do so by `nearest`, so single pixels stay visible.
    """
    _check(frames)
    count, h, w = frames.shape[:3]
    if count == 0:
        raise ValueError("a contact sheet needs at least one frame")
    if labels is None:
        labels = [f"{i / fps:.2f} s" if fps else str(i) for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} frames")
    columns = min(count, columns or 8)
    rows = -(-count // columns)
    cell_w = cell or min(256, max(96, w))
    cell_h = max(1, round(h * cell_w / w))
    gap, strip = 4, 16
    font = ImageFont.load_default(size=11)
    sheet = Image.new(
        "RGB", (gap + columns * (cell_w + gap), gap + rows * (cell_h + strip + gap)), background
    )
    draw = ImageDraw.Draw(sheet)
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        x = gap + (i % columns) * (cell_w + gap)
        y = gap + (i // columns) * (cell_h + strip + gap)
        sheet.paste(_pil_resize(frame, (cell_w, cell_h), "nearest" if cell_w > w else "lanczos"), (x, y))
        draw.text(
            (x + cell_w / 2, y + cell_h + strip / 2), label, font=font, fill=(220, 220, 220), anchor="mm"
        )
    return np.asarray(sheet)


def check_size(name: str, width: int, height: int) -> None:
    """Refuse pictures that no stage of the cascade can use, before memory is spent on them (InputError)."""
    if width < 1 or height < 1:
        raise InputError(f"`{name}` says it is {width} x {height} px, wanted at least 1 x 1")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"`{name}` is {width} x {height} px ({width * height / 1e6:.0f} MP), wanted at most {MAX_SIDE} px a side "
            f"and {MAX_PIXELS // 10**6} MP",
            hint="scale it down first",
        )


MAX_SIDE = 16384
MAX_PIXELS = 64_000_000
"""64 megapixels: one such frame is 192 MB as RGB."""


def _check(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected uint8 frames `f h w 3`, got {frames.dtype} of shape {frames.shape}")


def _pil_resize(frame: Frames, size: tuple[int, int], kernel: Kernel,
                box: tuple[float, float, float, float] | None = None) -> Image.Image:  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(frame)).resize(size, _PIL_KERNELS[kernel], box=box)


def _taps(n_in: int, n_out: int, kernel: Kernel, like: torch.Tensor) -> torch.Tensor:
    """(n_out, n_in) interpolation weights; each row sums to one."""
    import torch  # see to_float

    if kernel == "nearest":
        index = np.minimum((np.arange(n_out) + 0.5) * n_in / n_out, n_in - 1).astype(int)
        weights = np.eye(n_in)[index]
    else:
        window, support = _KERNELS[kernel]
        stretch = max(n_in / n_out, 1.0)  # a wider kernel downwards: that is the antialiasing
        centre = (np.arange(n_out) + 0.5) * n_in / n_out
        offset = (np.arange(n_in)[None] + 0.5 - centre[:, None]) / stretch
        weights = np.where(np.abs(offset) <= support, window(offset), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
    return torch.from_numpy(weights).to(device=like.device, dtype=like.dtype)


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)  # Keys; Pillow's a
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sinc(x) * np.sinc(x / 3)


_KERNELS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "area": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos3, 3.0),
}
