import re

import pytest

from u1_core.train.charts import Axis, Series, histogram, line_chart, smoothed, thinned


def test_smoothing_is_the_mean_of_what_came_before():
    points = [(1, 2.0), (2, 4.0), (3, 12.0), (4, 8.0)]
    assert smoothed(points, 2) == [(1, 2.0), (2, 3.0), (3, 8.0), (4, 10.0)]
    assert smoothed(points, 1) == points
    geometric = [y for _, y in smoothed(points, 2, log=True)]
    assert geometric == pytest.approx([2.0, 8.0**0.5, 48.0**0.5, 96.0**0.5])


def test_an_axis_places_values_and_marks_round_ones():
    axis = Axis(0, 10, 100, 200)
    assert [axis(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert axis.ticks() == [0, 2, 4, 6, 8, 10]
    log = Axis(0.01, 100, 0, 400, log=True)
    assert [log(value) for value in (0.01, 1, 100)] == pytest.approx([0, 200, 400])
    assert log.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert Axis(3, 3, 0, 1).ticks()[0] < 3 < Axis(3, 3, 0, 1).ticks()[-1]


def test_a_line_goes_through_its_points():
    chart = line_chart([Series("a", [(0, 0.0), (10, 1.0)], dots=True), Series("b", [(0, 1.0), (10, 0.5)])], "step", "%")
    (first, second) = re.findall(r'<path class="line s\d" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    assert (float(first[0]), float(first[2])) == (58, 546)
    assert float(first[1]) > float(second[3]) > float(first[3]) == float(second[1])
    assert "<title>a: 1 at 10</title>" in chart
    assert re.findall(r"</i>(\w)</span>", chart) == ["a", "b"]
    assert line_chart([Series("a", [])], "step", "%") == ""


def test_bars_have_the_heights_of_their_counts():
    chart = histogram([2, 4], [3.0, 3.0], "t", "pictures")
    heights = [float(found) for found in re.findall(r'<rect [^>]*height="([\d.]+)"', chart)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert "t 0.50 to 1.00: 4, expected 3.0" in chart


def test_names_are_escaped_and_long_lines_thinned():
    assert "<b>" not in line_chart([Series("<b>", [(0, 1.0)]), Series("c", [(0, 2.0)])], "<b>", "y")
    points = [(float(x), 0.0) for x in range(5001)]
    assert len(thinned(points)) <= 701
    assert (thinned(points)[0], thinned(points)[-1]) == (points[0], points[-1])
