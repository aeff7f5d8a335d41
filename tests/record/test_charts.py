import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.record.charts import Axis, Bar, Series, bar_chart, line_chart, thin
from groundup.record.graph import Node, lineage_graph


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def polyline(svg: str) -> list[tuple[float, float]]:
    points = next(element.attrib["points"] for element in parse(svg).iter("polyline"))
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_a_curve_goes_through_its_points_to_scale() -> None:
    svg = line_chart([Series("loss", [(0, 4.0), (50, 3.0), (100, 2.0)])], "Loss", "It falls.", 400)
    (x0, y0), (x1, y1), (x2, y2) = polyline(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y0 < y1, "on a screen, down is a larger y"


def test_on_logarithmic_axes_equal_ratios_are_equal_steps() -> None:
    svg = line_chart([Series("loss", [(1, 8.0), (10, 4.0), (100, 2.0)])], "Loss", "", 400, log_x=True, log_y=True)
    (x0, y0), (x1, y1), (x2, y2) = polyline(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)


def test_points_that_a_logarithmic_axis_cannot_show_are_left_out() -> None:
    svg = line_chart(
        [Series("loss", [(0, 1.0), (1, 2.0), (2, -1.0), (3, 4.0)])], "Loss", "", 400, log_x=True, log_y=True
    )
    assert len(polyline(svg)) == 2
    with pytest.raises(ValueError, match="no point to draw"):
        line_chart([Series("loss", [(1, 0.0)])], "Loss", "", 400, log_y=True)


@pytest.mark.parametrize("points", [[(3.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)]])
def test_a_single_point_and_a_flat_curve_can_be_drawn(points: list[tuple[float, float]]) -> None:
    for x, y in polyline(line_chart([Series("flat", points)], "Flat", "", 400, height=200)):
        assert 0 <= x <= 400 and 0 <= y <= 200


@given(
    low=st.floats(1e-6, 1e6),
    span=st.floats(1e-3, 1e6),
    most=st.integers(3, 8),
    is_log=st.booleans(),
)
def test_ticks_lie_within_the_axis_and_are_few(low: float, span: float, most: int, is_log: bool) -> None:
    axis = Axis(low, low * (1 + span) if is_log else low + span, 0.0, 100.0, is_log)
    ticks = axis.ticks(most)
    assert len(ticks) <= most + 1 and ticks == sorted(ticks)
    rounding = 1e-6 * (axis.high - axis.low) + 1e-9
    assert all(axis.low - rounding <= tick <= axis.high + rounding for tick in ticks)
    if not is_log:
        assert len(ticks) >= 1


def test_thinning_keeps_both_ends_and_every_spike() -> None:
    points = [(float(step), math.sin(step / 50)) for step in range(20_000)]
    points[7_777] = (7_777.0, 40.0)
    points[12_345] = (12_345.0, -40.0)
    kept = thin(points, most=300)
    assert len(kept) <= 304
    assert {points[0], points[-1], points[7_777], points[12_345]} <= set(kept)
    assert kept == sorted(kept)


def test_bars_are_as_long_as_their_values_and_whiskers_span_the_interval() -> None:
    bars = [Bar("half", 0.5, 0.4, 0.7), Bar("whole", 1.0)]
    root = parse(bar_chart(bars, "Shares", "", 400, lambda value: f"{value:.0%}", highest=1.0))
    lengths = [float(rect.attrib["width"]) for rect in root.iter("rect") if rect.attrib["class"].startswith("bar")]
    assert lengths[0] / lengths[1] == pytest.approx(0.5, abs=0.01)
    path = next(path.attrib["d"] for path in root.iter("path") if path.attrib["class"] == "whisker")
    low, high = (float(x) for x in re.match(r"M([\d.]+),[\d.]+H([\d.]+)", path).groups())  # type: ignore[union-attr]
    assert low / lengths[1] == pytest.approx(0.4, abs=0.01) and high / lengths[1] == pytest.approx(0.7, abs=0.01)
    assert [text.text for text in root.iter("text") if text.attrib["class"] == "value"] == ["50%", "100%"]


STREET = [
    Node("c", "corpus", "11111111"),
    Node("t", "tokenizer", "22222222", ["c"]),
    Node("s", "tokens", "33333333", ["c", "t"]),
    Node("e", "evaluate", "44444444", ["c", "s", "elsewhere"]),
]


@pytest.mark.parametrize("width", [760, 340])
def test_lineage_has_a_box_per_node_and_an_arrow_per_known_input_inside_the_drawing(width: int) -> None:
    root = parse(lineage_graph(STREET, "Lineage", "", width))
    boxes = [rect for rect in root.iter("rect") if rect.attrib["class"] == "box"]
    assert len(boxes) == 4
    assert len([path for path in root.iter("path") if path.attrib["class"] == "edge"]) == 5
    _, _, right, bottom = (float(word) for word in root.attrib["viewBox"].split())
    for rect in boxes:
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= right and y >= 0 and y + h <= bottom


def test_a_narrow_lineage_stands_upright() -> None:
    def tops(width: int) -> set[str]:
        return {rect.attrib["y"] for rect in parse(lineage_graph(STREET, "Lineage", "", width)).iter("rect")}

    assert len(tops(760)) == 1 and len(tops(340)) == 4


def test_every_chart_says_what_it_shows_to_those_who_do_not_see_it() -> None:
    for svg in (
        line_chart([Series("loss", [(1, 2)])], "A title", "What it shows.", 400),
        bar_chart([Bar("one", 1.0)], "A title", "What it shows.", 400, str),
        lineage_graph(STREET, "A title", "What it shows.", 400),
    ):
        root = parse(svg)
        assert root.attrib["role"] == "img"
        assert root.findtext("title") == "A title" and root.findtext("desc") == "What it shows."


def test_labels_from_data_are_escaped() -> None:
    root = parse(bar_chart([Bar("<script>&", 1.0)], "<t>", "<d>", 400, str))
    assert "<script>&" in [text.text for text in root.iter("text")]
    assert not list(root.iter("script"))
