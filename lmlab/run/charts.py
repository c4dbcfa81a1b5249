"""Line charts as SVG text: nice ticks, direct labels, colours that follow the reader's light or dark scheme.

An SVG is drawn once for each width instead of being scaled, so that its letters stay legible on a telephone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from lmlab.run.metrics import Series
from lmlab.run.numbers import compact, loss
from lmlab.run.scales import Axis, Scale, log_ticks, nice_ticks, spread

Role = Literal["train", "val", "quiet"]

STYLE = """
.chart{--train:#2f6fb0;--val:#c4511d;--quiet:#8a8f98;--soft:#676d76;--rule:#e4e6ea;--paper:#fff}
@media (prefers-color-scheme:dark){
.chart{--train:#74aef0;--val:#f29a5b;--quiet:#7b828c;--soft:#9aa1ab;--rule:#2d3239;--paper:#16181c}}
.chart text{font:12px/1 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums;
fill:var(--soft)}
.chart .rule{stroke:var(--rule);stroke-width:1}.chart .base{stroke:var(--quiet);stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .raw{fill:none;stroke-width:1;opacity:.32}
.chart .train{stroke:var(--train)}.chart .val{stroke:var(--val)}.chart .quiet{stroke:var(--quiet)}
.chart text.train{fill:var(--train);stroke:none;font-weight:600}.chart text.val{fill:var(--val);stroke:none;font-weight:600}
.chart text.quiet{stroke:none;fill:var(--soft)}
.chart circle{stroke:var(--paper);stroke-width:1.5}.chart circle.train{fill:var(--train)}.chart circle.val{fill:var(--val)}
.chart circle.quiet{fill:var(--quiet)}
"""
"""Rules shared by the page and the files in `plots/`."""

LINE_HEIGHT = 15
CHARACTER = 7.0  # width of one at 12 px, for the margins
MAX_DOTS = 40  # more would merge into a line of their own


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart.

    Args:
        label: Its name, written at its end.
        series: Its points.
        role: Which colour it has.
        smooth: Whether a moving average is drawn over the faint raw values.
        dots: Whether each point is marked.
    """

    label: str
    series: Series
    role: Role = "train"
    smooth: Literal["raw", "average"] = "raw"
    dots: Literal["none", "each"] = "none"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows.

    Args:
        title: For screen readers and the file's title.
        lines: The curves, the most important last (it is drawn on top).
        x_label: What the horizontal axis counts.
        x_scale: Logarithmic to see the beginning; points at 0 are left out then.
        y_zero: Whether the vertical axis begins at 0.
        prefixes: Whether 10^9 on the vertical axis is `B` or `G`.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "steps"
    x_scale: Scale = "linear"
    y_zero: Literal["include", "free"] = "free"
    prefixes: Literal["count", "si"] = "count"


def draw(chart: Chart, width: int = 760, height: int = 280, alone: Literal["inline", "file"] = "inline") -> str:
    """Draws a chart.

    Args:
        chart: What it shows.
        width: Pixels.
        height: Pixels.
        alone: `file` brings its own colours and XML declaration; `inline` takes the page's.

    Returns:
        An `<svg>` element, or an empty string when no curve has a finite point.
    """
    lines = [Line(**{**vars(line), "series": _usable(line.series, chart.x_scale)}) for line in chart.lines]
    lines = [line for line in lines if any(map(math.isfinite, line.series.y))]
    if not lines:
        return ""
    curves = [average(line.series) if line.smooth == "average" else line.series for line in lines]
    labels = [f"{line.label} {_value(_last_finite(curve.y), chart)}".strip() for line, curve in zip(lines, curves, strict=True)]
    y_low, y_high = _range([v for line in lines for v in line.series.y], chart.y_zero)
    y_ticks = nice_ticks(y_low, y_high, max(2, height // 45))
    left = 10 + CHARACTER * max(len(compact(t, chart.prefixes)) for t in y_ticks)
    right = max(14 + CHARACTER * max(map(len, labels)), 26 + CHARACTER * len(chart.x_label))
    xs = [v for line in lines for v in line.series.x]
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = (x_low / 2, x_high * 2) if chart.x_scale == "log" else (min(x_low, 0.0), max(2 * x_high, 1.0))
    elif chart.x_scale == "linear" and 0 < x_low < 0.35 * x_high:
        x_low = 0.0
    horizontal = Axis(x_low, x_high, left, width - right, chart.x_scale)
    vertical = Axis(y_low, y_high, height - 34, 10)
    parts = [*_grid(horizontal, vertical, y_ticks, chart.prefixes), *_ruler(horizontal, vertical.start, chart.x_label)]
    ends = []
    for line, curve in zip(lines, curves, strict=True):
        if line.smooth == "average":
            parts.append(f'<path class="raw {line.role}" d="{_path(line.series, horizontal, vertical)}"/>')
        parts.append(f'<path class="line {line.role}" data-label="{escape(line.label)}" d="{_path(curve, horizontal, vertical)}"/>')
        parts += _dots(line, curve, horizontal, vertical)
        last = next(i for i in reversed(range(len(curve.y))) if math.isfinite(curve.y[i]))
        ends.append((horizontal.pixel(curve.x[last]), vertical.pixel(curve.y[last])))
    for (x, _), y, line, label in zip(ends, spread([y for _, y in ends], LINE_HEIGHT, 10, height - 34), lines, labels, strict=True):
        parts.append(f'<text class="{line.role}" x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(label)}</text>')
    described = "; ".join(_describe(line, curve, chart.x_label) for line, curve in zip(lines, curves, strict=True))
    style = f"<style>{STYLE}.chart{{background:var(--paper)}}</style>" if alone == "file" else ""
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "chart",
        "role": "img",
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "data-x": f"{x_low:.9g} {x_high:.9g} {horizontal.start:.1f} {horizontal.end:.1f} {chart.x_scale}",
        "data-y": f"{y_low:.9g} {y_high:.9g} {vertical.start} {vertical.end}",
        "data-unit": chart.x_label,
        "aria-label": f"{chart.title}. {described}",
    }
    tag = " ".join(f'{name}="{escape(str(value))}"' for name, value in attributes.items())
    return f"<svg {tag}><title>{escape(chart.title)}</title>{style}{''.join(parts)}</svg>"


def average(series: Series, share: float = 0.03) -> Series:
    """A moving average that neither lags behind nor bends the steep beginning.

    The window is symmetric and small near the first points, where a loss falls fastest; at the end it looks back only, so that the
    last value is a mean too.

    Args:
        series: The raw points; those that are not finite are left out.
        share: Half the window as a share of all points.
    """
    points = [(x, y) for x, y in zip(*series, strict=True) if math.isfinite(y)]
    half = int(len(points) * share)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for index in range(len(points)):
        reach = min(half, index // 5)
        low, high = index - reach, min(index + reach + 1, len(points))
        means.append((sums[high] - sums[low]) / (high - low))
    return Series([x for x, _ in points], means)


def _usable(series: Series, scale: Scale) -> Series:
    kept = [(x, y) for x, y in zip(*series, strict=True) if math.isfinite(x) and (scale == "linear" or x > 0)]
    return Series([x for x, _ in kept], [y for _, y in kept])


def _range(values: Sequence[float], zero: Literal["include", "free"]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    if zero == "include":
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9 * max(abs(high), 1e-30):
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.04 * (high - low)
    return (low if zero == "include" and low == 0 else low - pad), high + pad


def _grid(horizontal: Axis, vertical: Axis, ticks: Sequence[float], prefixes: Literal["count", "si"]) -> list[str]:
    parts = []
    for tick in ticks:
        y = vertical.pixel(tick)
        parts.append(f'<line class="rule" x1="{horizontal.start:.1f}" x2="{horizontal.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{horizontal.start - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{compact(tick, prefixes)}</text>')
    return parts


def _ruler(axis: Axis, base: float, label: str) -> list[str]:
    room = max(2, int((axis.end - axis.start) / 75))
    ticks = log_ticks(axis.low, axis.high, room) if axis.scale == "log" else nice_ticks(axis.low, axis.high, room)
    whole = [tick for tick in ticks if tick == int(tick)]
    ticks = whole if len(whole) > 1 else ticks  # there is no step 1.5
    parts = [f'<line class="base" x1="{axis.start:.1f}" x2="{axis.end:.1f}" y1="{base}" y2="{base}"/>']
    for tick in ticks:
        x = axis.pixel(tick)
        parts.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{compact(tick)}</text>')
    parts.append(f'<text x="{axis.end + 22:.1f}" y="{base + 18}">{escape(label)}</text>')
    return parts


def _path(series: Series, horizontal: Axis, vertical: Axis) -> str:
    """Path data; a value that is not finite interrupts the line."""
    points = zip(horizontal.pixels(series.x), vertical.pixels(series.y), strict=True)
    stretches = [_thin(list(group)) for is_drawn, group in itertools.groupby(points, lambda p: math.isfinite(p[1])) if is_drawn]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in stretch) for stretch in stretches)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most four points for each column of pixels: the first, the lowest, the highest and the last."""
    kept: list[tuple[float, float]] = []
    for _, group in itertools.groupby(points, key=lambda point: int(point[0])):
        column = list(group)
        heights = [y for _, y in column]
        kept += [column[i] for i in sorted({0, heights.index(min(heights)), heights.index(max(heights)), len(column) - 1})]
    return kept


def _dots(line: Line, curve: Series, horizontal: Axis, vertical: Axis) -> list[str]:
    finite = [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)]
    shown = finite if (line.dots == "each" and len(finite) <= MAX_DOTS) or len(finite) == 1 else []
    return [
        f'<circle class="{line.role}" cx="{horizontal.pixel(x):.1f}" cy="{vertical.pixel(y):.1f}" r="3.2">'
        f"<title>{escape(line.label)} {loss(y)} at {compact(x)}</title></circle>"
        for x, y in shown
    ]


def _value(value: float, chart: Chart) -> str:
    return compact(value, chart.prefixes) if abs(value) >= 1e4 else loss(value)


def _last_finite(values: Sequence[float]) -> float:
    return next(v for v in reversed(values) if math.isfinite(v))


def _describe(line: Line, curve: Series, unit: str) -> str:
    finite = [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)]
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    return f"{line.label}: from {loss(y0)} at {compact(x0)} to {loss(y1)} at {compact(x1)} {unit}"
