"""Figures as files: well-formed, with their own ids, in the page's colours."""

import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from gkd.report.charts import (
    Difference,
    DifferenceChart,
    HeatMap,
    Line,
    LineChart,
    StackedBars,
)
from gkd.report.drawing import COLORS, save, svg

NAME = "</text><script>$x_{1}$</script>&<b>"
LONG = "long/" * 100
CHARTS = [
    LineChart(
        "lines", NAME, NAME, "BLEU",
        [
            Line(NAME, [1, 10, 100], [1.0, 2.0, 4.0], [0.1, None, 0.2], 0),
            Line("points", [1], [2.0], [0.5], 9, joined=False, texts=[NAME]),
        ],
        {NAME: 3.0}, log_x=True,
    ),
    HeatMap("map", NAME, NAME, "λ", [NAME, "b"], ["1", "0"], [[1.0, None], [-2.0, 0.0]]),
    StackedBars("bars", NAME, "ms", [NAME, "b"], {NAME: [1.0, 2.0], "update": [2.0, 1.0]}),
    DifferenceChart(
        "differences", NAME, "points",
        [
            Difference(NAME, "holds", [1.0, 3.0], 2.0, 12.7, [0.0, 5]),
            Difference("b", "inconclusive", [1.0], 1.0, None, [0]),
            Difference("c", "incomplete", [], None, None),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_an_svg_is_well_formed_and_its_text_stays_text(chart):
    text = svg(chart)
    root = ElementTree.fromstring(text)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in names and "b" not in names
    shown = "".join(root.itertext())
    assert NAME in shown  # no formula was made of the dollar signs
    assert "http" not in text.replace("http://www.w3.org/", "")  # nothing is fetched


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_every_id_is_the_figures_own_and_every_reference_has_one(chart):
    root = ElementTree.fromstring(svg(chart))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids and all(name.startswith(f"{chart.name}-") for name in ids)
    assert len(set(ids)) == len(ids)
    link = "{http://www.w3.org/1999/xlink}href"
    for element in root.iter():
        if element.get(link):
            assert element.get(link).removeprefix("#") in ids


def test_long_names_leave_room_for_the_figure():
    bars = StackedBars("bars", LONG, LONG, [LONG, "b"], {LONG: [1.0, 2.0], "update": [2.0, 1.0]})
    lines = LineChart(
        "a", LONG, LONG, LONG, [Line(LONG, [0, 1], [1.0, 2.0]), Line("b", [0], [1.0])]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of axes without any room
        svg(DifferenceChart("d", LONG, LONG, [Difference(LONG, "does not hold", [1.0], 1.0, None)]))
        assert "long/long/long/lon…" in svg(bars) and "…" in svg(lines)


def test_a_name_with_a_leading_underscore_is_in_the_legend():
    """Matplotlib leaves such labels out."""
    lines = LineChart("a", "a", "step", "BLEU", [Line("_old", [0, 1], [1, 2]), Line("b", [0], [1])])
    assert "_old" in svg(lines)


def test_colours_follow_the_page():
    text = svg(CHARTS[0])
    assert "var(--arm-0)" in text and "var(--ink)" in text
    assert COLORS[0] not in text and "#ffffff" not in text


def test_the_same_figure_is_written_as_png_and_pdf(tmp_path):
    png, pdf = save(CHARTS[0], tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.pdf", "lines.png"]
