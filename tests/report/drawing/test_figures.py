"""Figures as SVG."""

import re
import struct
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest

from chinchilla_sim.report.drawing.canvas import COLOR, PNG_DPI, WIDTH_PT
from chinchilla_sim.report.drawing.cluster_figure import draw_cluster
from chinchilla_sim.report.drawing.figures import draw_alternatives, draw_memory, draw_sensitivity
from chinchilla_sim.report.drawing.front_figure import draw_fronts
from chinchilla_sim.report.drawing.gantt import MOST_ROWS, WAIT_COLOR, draw_gantt
from chinchilla_sim.report.study import Study
from chinchilla_sim.simulator.sensitivity import Explanation, Sensitivity
from chinchilla_sim.timeline import Category, MemorySample, Span, Timeline, Wait
from chinchilla_sim.units import format_seconds, format_usd
from tests.report.cells import MakeStudy

SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _boxes(svg: str, category: Category) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every rectangle drawn in a category's colour, without the legend."""
    paths = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if COLOR[category] in e.attrib.get("style", "")]
    found = []
    for part in " ".join(paths[:-1]).split("z"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", part)]
        if numbers:
            found.append((min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])))
    return found


def _row_of(count: int, duration_s: float, category: Category = "forward") -> Timeline:
    """One rank that works half of the time, in `count` equal spans."""
    spans = (Span(0, "compute", category, f"0F{i}", 2 * i * duration_s, (2 * i + 1) * duration_s) for i in range(count))
    return Timeline(1, tuple(spans))


def _figures(study: Study) -> list[str]:
    best = study.search.best
    measured = study.measurement.timeline if study.measurement else None
    drawings = [draw_gantt(study.timeline, measured), draw_memory(best.timeline, [2.0**30] * best.plan.rank_count)]
    drawings += [draw_alternatives(study.search), *draw_fronts(study), draw_cluster(study)]
    return [one.svg() for one in [*drawings, *([draw_sensitivity(study.sensitivity)] if study.sensitivity else [])]]


def test_figures_are_accessible_svg_that_a_page_can_hold(thorough: Study) -> None:
    """Each parses, has a role, a label, a title and a description, and nothing that could clash with or leave the page."""
    for svg in _figures(thorough):
        root = ElementTree.fromstring(svg)
        assert (root.tag, root.attrib["role"]) == (f"{SVG}svg", "img")
        title, description = root[0], root[1]
        assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
        assert root.attrib["aria-label"] == title.text and description.text
        assert not {"id", "clip-path", "href"} & {name for element in root.iter() for name in element.attrib}
        assert not {f"{SVG}{name}" for name in ("style", "script", "image", "metadata", "use")} & {element.tag for element in root.iter()}
        assert svg.count("http") == 1  # the name of SVG's own namespace


def test_figures_are_stable(thorough: Study) -> None:
    """The same input gives the same bytes, whatever matplotlib's settings of the user are."""
    first = _figures(thorough)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "text.parse_math": True}):
        assert _figures(thorough) == first


def test_figures_follow_the_page_s_brightness(thorough: Study) -> None:
    """Text has no colour of its own but on bars, and there is no background."""
    for svg in _figures(thorough):
        assert "currentColor" in svg and "#010203" not in svg
        assert not re.search(r"fill: #ffffff[^>]*/>", svg)


def test_gantt_shows_the_measured_step_on_the_same_scale(measured: Study) -> None:
    """Both steps are told, and a span that took 1.25 times as long is 1.25 times as wide."""
    assert measured.measurement
    simulated, real = measured.search.best.timeline, measured.measurement.timeline
    svg = draw_gantt(simulated, real).svg()
    assert f"simulated step: {format_seconds(simulated.step_s)}" in _texts(svg)
    assert f"measured step nearest the median: {format_seconds(real.step_s)}" in _texts(svg)
    boxes = _boxes(svg, "backward")
    upper, lower = boxes[: len(boxes) // 2], boxes[len(boxes) // 2 :]
    widths = [max(box[2] for box in panel) - min(box[0] for box in panel) for panel in (upper, lower)]
    assert widths[1] / widths[0] == pytest.approx(1.25, rel=0.01)
    assert min(box[1] for box in lower) > max(box[3] for box in upper)


def test_gantt_names_ranks_streams_and_categories(measured: Study) -> None:
    """Rows are named after ranks and streams, colours after the categories that occur."""
    texts = _texts(draw_gantt(measured.search.best.timeline).svg())
    assert {"rank 0", "rank 1", "send", "receive", "forward", "backward", "optimizer", "transfer"} <= set(texts)
    assert not {"collective", "codec"} & set(texts)


def test_span_is_labelled_only_where_its_label_fits() -> None:
    """A wide span carries its action, a narrow one beside it does not."""
    timeline = Timeline(1, (Span(0, "compute", "forward", "0F0", 0.0, 0.99), Span(0, "compute", "optimizer", "0OPTIM", 0.99, 1.0)))
    texts = _texts(draw_gantt(timeline).svg())
    assert "0F0" in texts and "0OPTIM" not in texts


def test_gantt_of_512_microbatches_is_small(long_pipeline: Study) -> None:
    """Thousands of spans become shares of columns: no labels, and not a heavy page."""
    timeline = long_pipeline.search.best.timeline
    assert len(timeline.spans) > 7000
    svg = draw_gantt(timeline).svg()
    assert len(svg) < 200_000
    assert not [text for text in _texts(svg) if re.fullmatch(r"\d[FB]\d+", text)]


@pytest.mark.parametrize("count", [1, 20, 1000])
def test_area_of_a_row_is_its_busy_time(count: int) -> None:
    """However dense a row is, its coloured area is the time that it worked: here half of it, but for gaps between bars."""
    timeline = _row_of(count, 1e-3)
    boxes = _boxes(draw_gantt(timeline).svg(), "forward")
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    whole = 474.0 * 17.0
    assert area / whole == pytest.approx(timeline.utilization(0), rel=0.06)


@pytest.mark.parametrize(("longest_s", "unit"), [(3e-7, "ns"), (2e-5, "us"), (0.02, "ms"), (20.0, "s")])
def test_time_axis_has_a_fitting_unit(longest_s: float, unit: str) -> None:
    """The axis is labelled in the largest unit of which the step has at least one."""
    assert f"time since the first span ({unit})" in _texts(draw_gantt(_row_of(1, longest_s)).svg())


def test_ranks_that_do_the_same_share_a_row() -> None:
    """A hundred equal ranks are one row that says so; of many different ones some are shown, the first and the last among them."""
    equal = Timeline(100, tuple(Span(rank, "compute", "forward", "0F0", 0.0, 1.0) for rank in range(100)))
    texts = _texts(draw_gantt(equal).svg())
    assert "rank 0 (100x)" in texts and "simulated step: 1.00 s (100 ranks; those that do the same share a row)" in texts
    unequal = Timeline(100, tuple(Span(rank, "compute", "forward", "0F0", 0.0, 1.0 + rank) for rank in range(100)))
    texts = _texts(draw_gantt(unequal).svg())
    assert f"simulated step: {format_seconds(100.0)} ({MOST_ROWS} rows of 100; 100 ranks)" in texts
    assert {"rank 0", "rank 99"} <= set(texts) and sum(text.startswith("rank ") for text in texts) == MOST_ROWS


def test_strips_tell_what_idle_ranks_wait_for() -> None:
    """A gap of half the step has a strip of half its width in the colour of its cause, which the legend names."""
    span, wait = Span(0, "compute", "forward", "0F0", 0.0, 1.0), Wait(0, 1.0, 2.0, "done", kind="end")
    svg = draw_gantt(Timeline(1, (span, Span(0, "send", "transfer", "0SEND_F0", 1.0, 2.0)), waits=(wait,))).svg()
    assert {"idle, waits for:", "the end"} <= set(_texts(svg))
    paths = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if WAIT_COLOR["end"] in e.attrib.get("style", "")]
    xs = [float(number) for number in re.findall(r"-?[\d.]+", paths[0])][::2]
    assert max(xs) - min(xs) == pytest.approx(474.0 / 2, abs=0.1)


def test_overlapping_messages_lie_beside_each_other() -> None:
    """Two receives at once share the height of their row."""
    spans = (Span(0, "receive", "transfer", "1RECV_F0", 0.0, 2.0), Span(0, "receive", "transfer", "1RECV_F1", 1.0, 3.0))
    first, second = _boxes(draw_gantt(Timeline(1, spans)).svg(), "transfer")
    assert first[3] <= second[1] and first[2] > second[0]


def test_empty_timeline_can_be_drawn() -> None:
    """No span, no memory sample: still a figure."""
    empty = Timeline(2, ())
    assert "simulated step: 0 s" in _texts(draw_gantt(empty).svg())
    assert "rank 1" in _texts(draw_memory(empty, [1e9, 1e9]).svg())


def test_labels_are_text_and_nothing_else() -> None:
    """Markup and formulas in a label are shown as they are written."""
    label = "<b>$x_1$&"
    svg = draw_gantt(Timeline(1, (Span(0, "compute", "backward", label, 0.0, 1.0),))).svg()
    assert label in _texts(svg) and "<b>" not in svg


def test_memory_is_told_against_capacity() -> None:
    """Each rank shows its peak, its capacity and the share; the bar splits into what is held all the time and the rest."""
    samples = (MemorySample(0, 0.0, 4e8), MemorySample(0, 1.0, 6e8), MemorySample(0, 2.0, 4e8))
    svg = draw_memory(Timeline(1, (), samples), [1e9]).svg()
    assert "600 MB of 1.00 GB (60.0 %)" in _texts(svg) and "capacity" in _texts(svg)
    (held,), (top,) = _bars(svg, "forward"), _bars(svg, "backward")
    assert held / top == pytest.approx(2.0, rel=0.01)


def _bars(svg: str, category: Category) -> list[float]:
    """Widths of the bars in a category's colour; the legend's key is drawn last."""
    paths = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if COLOR[category] in e.attrib.get("style", "")]
    ends = [[float(number) for number in re.findall(r"-?[\d.]+", path)][::2] for path in paths]
    return [max(xs) - min(xs) for xs in ends][:-1]


def test_capacity_beyond_the_scale_is_told_in_words_alone() -> None:
    """Bars of 0.1 % of the capacity stay readable: the scale is theirs."""
    svg = draw_memory(Timeline(1, (), (MemorySample(0, 0.0, 1e6),)), [1e9]).svg()
    assert "1.00 MB of 1.00 GB (0.1 %)" in _texts(svg) and "capacity" not in _texts(svg)


def test_alternatives_are_drawn_in_proportion(pipeline: Study) -> None:
    """Every listed plan has a bar as long as its step, its name, and how it compares."""
    search = pipeline.search
    assert search.one_rank
    svg = draw_alternatives(search).svg()
    texts = _texts(svg)
    assert f"{format_seconds(search.best.step_s)}, chosen" in texts and "one rank alone (for reference)" in texts
    assert all(candidate.plan.describe() in texts for candidate in search.runner_ups)
    xs = [[float(n) for n in re.findall(r"-?[\d.]+", e.attrib["d"])][::2] for e in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    widths = [max(values) - min(values) for values in xs if max(values) > min(values)]
    steps = [search.best.step_s, *(candidate.step_s for candidate in search.runner_ups), search.one_rank.step_s]
    assert [width / max(widths) for width in widths] == pytest.approx([step_s / max(steps) for step_s in steps], rel=0.01)


def test_alternatives_without_reference_can_be_drawn(pipeline: Study) -> None:
    """A search whose model does not fit on one rank has no reference bar."""
    assert "one rank alone (for reference)" not in _texts(draw_alternatives(replace(pipeline.search, one_rank=None)).svg())


def test_sensitivity_is_drawn_in_proportion() -> None:
    """Twice the change has twice the bar, on the other side where the step gets longer; what changes nothing has none."""
    changes = (Sensitivity("a", 0.8, -0.2), Sensitivity("b", 1.1, 0.1), Sensitivity("c", 1.0, 0.0))
    svg = draw_sensitivity(Explanation(1.0, {}, 0, 0, 1.0, 0, 0.0, changes)).svg()
    texts = _texts(svg)
    assert {"a", "-20.0 %", "b", "+10.0 %"} <= set(texts) and "c" not in texts
    bars = []
    for category in ("optimizer", "backward"):
        (path,) = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if COLOR[category] in e.attrib.get("style", "")]
        xs = [float(number) for number in re.findall(r"-?[\d.]+", path)][::2]
        bars.append((min(xs), max(xs)))
    assert bars[0][1] == pytest.approx(bars[1][0], abs=0.1)
    assert (bars[0][1] - bars[0][0]) / (bars[1][1] - bars[1][0]) == pytest.approx(2.0, rel=0.01)


def test_alternatives_are_drawn_by_what_is_minimised(make_study: MakeStudy) -> None:
    """Where money is minimised the bars are money."""
    study = make_study(search__objective="cost", search__minimum_ranks=2)
    svg = draw_alternatives(study.search, "cost").svg()
    assert f"{format_usd(study.search.best.objective)}, chosen" in _texts(svg) and "Price per step of the alternatives" in svg


def test_pictures_are_png_of_stable_bytes(thorough: Study) -> None:
    """Figures are also drawn on white for files of their own."""
    first, second = (draw_gantt(thorough.timeline).png() for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")
    assert struct.unpack(">II", first[16:24])[0] == round(WIDTH_PT / 72 * PNG_DPI)
