"""Plots as SVG: a score against the number of samples, one bar a class, and the curves of trainings.

Written out by hand: two axes and a handful of marks need no plotting library, and the text stays text. They follow the
reader's light or dark theme where they are shown by a browser.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 46, 52
_STYLE = """<style>
text { font: 13px system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; fill: #16181d; }
.title { font-size: 15px; font-weight: 600; } .soft { fill: #5d6472; } .right { text-anchor: end; } .middle { text-anchor: middle; }
.ground { fill: #ffffff; } .grid { stroke: #e3e6ec; } .line { fill: none; stroke: #2f5bea; stroke-width: 2; } .mark { fill: #2f5bea; }
.interval { stroke: #2f5bea; stroke-width: 2; opacity: .5; } .other { stroke: #8a92a3; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #eceef3; } .soft { fill: #98a0b0; } .ground { fill: #171a21; } .grid { stroke: #2a2f3a; }
  .line, .interval { stroke: #7d9bff; } .mark { fill: #7d9bff; }
}
</style>"""


def curve_svg(
    points: Sequence[tuple[int, float]],
    *,
    title: str,
    interval: tuple[float, float] | None = None,
    others: Mapping[str, float] | None = None,
) -> str:
    """points (samples, score) as a line over a logarithmic axis, the `interval` of the last, `others` as dashed levels."""
    if not points:
        raise ValueError("a curve needs at least one point")
    others = others or {}
    values = [value for _, value in points] + list(interval or ()) + list(others.values())
    low, high, ticks = _axis(min(values), max(values))
    counts = [count for count, _ in points]
    spread = math.log(counts[-1] / counts[0]) or 1.0

    def x(count: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (
            math.log(count / counts[0]) / spread if len(counts) > 1 else 0.5
        )

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [_text(_LEFT, 26, title, "title")]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(_text(_LEFT - 10, y(tick) + 4, f"{tick:g}", "soft right"))
    below = -math.inf
    for name, value in sorted(others.items(), key=lambda item: -item[1]):
        parts.append(
            f'<line class="other" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        below = max(y(value) - 5, below + 15)  # levels may lie closer than their names are high
        parts.append(_text(_LEFT + 6, below, f"{name} {value:g}", "soft"))
    line = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    last = x(counts[-1])
    if interval:
        ends = [y(value) for value in interval]
        parts.append(
            f'<line class="interval" x1="{last:.1f}" x2="{last:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
        )
    before = -math.inf
    for count, value in points:
        parts.append(f'<circle class="mark" cx="{x(count):.1f}" cy="{y(value):.1f}" r="4"/>')
        if x(count) - before > 48 or count == counts[-1]:  # labels that would touch are left out
            parts.append(_text(x(count), _HEIGHT - _BOTTOM + 20, f"{count:,}", "soft middle"))
            before = x(count)
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "samples", "soft middle"))
    return _svg(_WIDTH, _HEIGHT, parts)


_COLOURS = ("#2f5bea", "#d9480f", "#0b8a4b", "#9c36b5", "#b8860b", "#0c8599", "#c2255c", "#5c677d")


def lines_svg(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x: str) -> str:
    """Named lines of (x, y), at most eight, over one linear axis called `x`; the name stands where a line ends."""
    if not 1 <= len(series) <= len(_COLOURS) or not all(series.values()):
        raise ValueError(f"wanted 1 to {len(_COLOURS)} lines with at least one point each")
    points = [point for line in series.values() for point in line]
    low, high, ticks = _axis(min(v for _, v in points), max(v for _, v in points))
    left, right, across = _axis(min(p for p, _ in points), max(p for p, _ in points))
    width = _WIDTH - _LEFT - 3 * _RIGHT - 8 * max(len(name) for name in series)

    def at(value: float) -> float:
        return _LEFT + width * (value - left) / (right - left)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [_text(_LEFT, 26, title, "title")]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(_text(_LEFT - 10, y(tick) + 4, f"{tick:g}", "soft right"))
    parts += [_text(at(tick), _HEIGHT - _BOTTOM + 20, f"{tick:,g}", "soft middle") for tick in across]
    below = -math.inf
    ends = sorted(zip(series.items(), _COLOURS, strict=False), key=lambda item: -item[0][1][-1][1])
    for (name, line), colour in ends:
        path = " ".join(f"{at(place):.1f},{y(value):.1f}" for place, value in line)
        parts.append(f'<polyline class="line" style="stroke: {colour}" points="{path}"/>')
        place, value = line[-1]
        parts.append(
            f'<circle style="fill: {colour}" cx="{at(place):.1f}" cy="{y(value):.1f}" r="4"><title>{value:g}</title></circle>'
        )
        below = max(y(value) + 4, below + 16)  # lines may end closer than their names are high
        parts.append(_text(_LEFT + width + 14, below, f"{name} {value:.4g}", "soft"))
    parts.append(_text(_LEFT + width / 2, _HEIGHT - 10, x, "soft middle"))
    return _svg(_WIDTH, _HEIGHT, parts)


def bars_svg(classes: Mapping[str, float], *, title: str) -> str:
    """One bar a class, the longest first; values of at least 0."""
    if not classes:
        raise ValueError("bars need at least one class")
    ranked = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    high = max(ranked[0][1], 1e-9)
    left, row = 28 + 8 * max(len(name) for name in classes), 20
    height = _TOP + row * len(ranked) + 16
    parts = [_text(20, 26, title, "title")]
    for i, (name, value) in enumerate(ranked):
        top = _TOP + row * i
        length = (_WIDTH - left - 80) * max(value, 0.0) / high
        parts.append(_text(left - 8, top + 13, name, "right"))
        parts.append(
            f'<rect class="mark" x="{left:.1f}" y="{top + 2}" width="{length:.1f}" height="{row - 6}" rx="3"/>'
        )
        parts.append(_text(left + length + 8, top + 13, f"{value:.3g}", "soft"))
    return _svg(_WIDTH, height, parts)


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round ends around the values, and four to seven round steps between."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next((factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6), 10)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 12) for i in range(first, last + 1)]


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    inner = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'{_STYLE}\n<rect class="ground" width="100%" height="100%" rx="10"/>\n{inner}\n</svg>\n'
    )
