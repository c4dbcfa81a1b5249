"""Charts read back as XML: positions are compared with the data by the axis printed on them."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from lmlab.run.charts import Chart, Line, average, draw
from lmlab.run.metrics import Series

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def values_of(root: ET.Element, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Undoes the drawing with the two axis ranges that the chart carries."""
    path = next(p for p in root.iter(f"{SVG}path") if p.get("class", "").startswith(kind))
    pixels = np.array([[float(v) for v in pair] for pair in re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d", ""))])
    x0, x1, left, right = (float(v) for v in root.get("data-x", "").split()[:4])
    y0, y1, bottom, top = (float(v) for v in root.get("data-y", "").split())
    share = (pixels[:, 0] - left) / (right - left)
    x = x0 * (x1 / x0) ** share if root.get("data-x", "").endswith("log") else x0 + share * (x1 - x0)
    return x, y0 + (pixels[:, 1] - bottom) / (top - bottom) * (y1 - y0)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_points_are_where_the_axes_say(scale: str) -> None:
    xs, ys = [1.0, 10.0, 50.0, 100.0], [9.0, 4.0, 3.0, 2.5]
    root = parse(draw(Chart(title="t", lines=[Line(label="val", series=Series(xs, ys))], x_scale=scale)))  # type: ignore[arg-type]
    x, y = values_of(root, "line")
    np.testing.assert_allclose(x, xs, rtol=0.02, atol=0.1)
    np.testing.assert_allclose(y, ys, atol=0.02)


def test_tick_labels_stand_at_their_values() -> None:
    root = parse(draw(Chart(title="t", lines=[Line(label="a", series=Series([0, 2000], [2, 9]))])))
    y0, y1, bottom, top = (float(v) for v in root.get("data-y", "").split())
    labels = {t.text: float(t.get("y", "")) - 4 for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"}
    assert set(labels) >= {"4", "6", "8"}
    for text, pixel in labels.items():
        assert y0 + (pixel - bottom) / (top - bottom) * (y1 - y0) == pytest.approx(float(text or ""), abs=0.02)
    shown = [t.text for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    assert shown[0] == "0" and shown[-1] == "2\u202fk"


def test_a_long_curve_is_thinned_but_keeps_its_peaks() -> None:
    ys = np.random.default_rng(0).standard_normal(50_000)
    ys[31_234] = 50.0
    svg = draw(Chart(title="t", lines=[Line(label="a", series=Series(list(range(50_000)), ys.tolist()))]))
    assert len(svg) < 60_000
    x, y = values_of(parse(svg), "line")
    assert y.max() == pytest.approx(50, rel=0.01) and x[y.argmax()] == pytest.approx(31_234, abs=100)


def test_values_that_are_not_finite_interrupt_the_line_and_an_empty_chart_is_nothing() -> None:
    svg = draw(Chart(title="t", lines=[Line(label="a", series=Series([1, 2, 3, 4, 5], [1, 2, math.nan, 3, math.inf]))]))
    path = next(p for p in parse(svg).iter(f"{SVG}path"))
    assert path.get("d", "").count("M") == 2 and "nan" not in svg and "inf" not in svg
    assert draw(Chart(title="t", lines=[Line(label="a", series=Series([1, 2], [math.nan, math.nan]))])) == ""
    assert draw(Chart(title="t", lines=[])) == ""


@pytest.mark.parametrize("series", [Series([5], [1.0]), Series([0], [0.0]), Series([1, 2], [3.0, 3.0]), Series([7, 7], [1e-30, -1e-30])])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_degenerate_curves_draw_or_vanish(series: Series, scale: str) -> None:
    svg = draw(Chart(title="t", lines=[Line(label="a", series=series)], x_scale=scale))  # type: ignore[arg-type]
    assert svg == "" or ("nan" not in svg and parse(svg).tag == f"{SVG}svg")


def test_names_are_escaped_and_a_reader_of_the_screen_hears_the_numbers() -> None:
    svg = draw(Chart(title='<b>"x"</b>', lines=[Line(label="<i>&", series=Series([1, 10], [4.0, 2.0]))], x_label="st<eps"))
    root = parse(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == '<b>"x"</b>. <i>&: from 4 at 1 to 2 at 10 st<eps'
    assert not list(root.iter(f"{SVG}b")) and not list(root.iter(f"{SVG}i"))


def test_a_file_brings_its_colours_for_light_and_dark() -> None:
    chart = Chart(title="t", lines=[Line(label="a", series=Series([1, 2], [1, 2]))])
    assert "prefers-color-scheme:dark" in draw(chart, alone="file") and "<style>" not in draw(chart)


def test_labels_at_the_ends_do_not_overlap() -> None:
    lines = [Line(label=str(i), series=Series([1, 2], [1, 2 + i / 1000]), role="quiet") for i in range(3)]
    root = parse(draw(Chart(title="t", lines=lines)))
    places = sorted(float(t.get("y", "")) for t in root.iter(f"{SVG}text") if t.get("class") == "quiet")
    assert len(places) == 3 and min(np.diff(places)) >= 14.9


def test_the_average_does_not_bend_a_straight_line_and_starts_at_its_first_point() -> None:
    series = Series(list(range(1000)), [3.0 * i for i in range(1000)])
    smooth = average(series)
    np.testing.assert_allclose(smooth.y[:900], series.y[:900], rtol=1e-9)
    noise = np.random.default_rng(0).standard_normal(2000)
    assert np.std(average(Series(list(range(2000)), noise.tolist())).y[500:]) < 0.2
    falling = [9 * math.exp(-i / 20) for i in range(2000)]
    assert average(Series(list(range(2000)), falling)).y[10] == pytest.approx(falling[10], rel=0.02)
    assert average(Series([1, 2, 3], [math.nan, 1.0, 2.0])).x == [2, 3]
