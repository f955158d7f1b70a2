"""The page."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from chinchilla_sim.report.pages.page import render_page
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.verdict import answer
from chinchilla_sim.timeline import Wait
from chinchilla_sim.units import format_bytes, format_seconds
from tests.report.cells import MakeStudy

VOID = {"meta", "link", "br", "img", "hr", "input"}


class _Outline(HTMLParser):
    """Tags, attributes, visible text and headings of a page; end tags must match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def test_page_is_self_contained(thorough: Study) -> None:
    """No script, no picture or style from elsewhere, no handler, no link but within itself: a page that needs no network."""
    page = render_page(thorough)
    outline = _Outline(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(outline.tags)
    assert not [name for name, _ in outline.attributes if name in ("src", "xlink:href") or name.startswith("on")]
    targets = [value or "" for name, value in outline.attributes if name == "href"]
    assert targets == [f"#{value}" for name, value in outline.attributes if name == "id"] and len(targets) == len(outline.headings)
    assert "http://" not in page and "https://" not in page and "@import" not in page and "url(" not in page


def test_sections_stand_in_reading_order(thorough: Study) -> None:
    """Reasons, plan, step and its error, what else there was and what would change it, then memory, money and sources."""
    study = replace(thorough, explanation=("because",))
    expected = ["Why this plan", "The plan over the cluster", "One step, simulated and measured", "Was the simulation right?"]
    expected += ["Alternatives", "What the step depends on", "Memory", "Cost", "Trade-offs", "Where the figures are from"]
    assert _Outline(render_page(study)).headings == expected


def test_page_answers_the_question_with_numbers(measured: Study) -> None:
    """Question, answer, simulated and measured step, error, accuracy, reasons and sources are on the page."""
    assert measured.comparison
    study = replace(measured, explanation=("the network is the bottleneck",))
    text = " ".join(_Outline(render_page(study)).text)
    best = study.search.best
    for part in (
        study.scenario.question,
        answer(study),
        format_seconds(best.step_s),
        format_seconds(measured.comparison.measured_step_s),
        "-20.0 %",
        "97.1 %",
        format_bytes(best.timeline.peak_memory_bytes(0)),
        "the network is the bottleneck",
        *study.cluster.provenance,
        study.graph.digest,
        study.cluster.digest,
        "chinchilla report two-nodes.toml",
    ):
        assert part in text


def test_unequal_work_of_replicas_is_told(make_study: MakeStudy) -> None:
    """A plan that gives replicas different numbers of microbatches says so, and does not state the mean of them."""
    study = make_study(search__minimum_ranks=2, search__data_parallel_degrees=[2], search__microbatch_counts=[2])
    best = study.search.best
    uneven = replace(best, plan=replace(best.plan, replica_microbatch_counts=(3, 1)))
    text = " ".join(_Outline(render_page(replace(study, search=replace(study.search, best=uneven)))).text)
    assert "64 samples, 16 to 48 per replica" in text and "1 to 3 microbatches of 16 per replica" in text


def test_page_without_a_run_shows_nothing_measured(pipeline: Study) -> None:
    """What did not run is not compared, and no run is offered for machines that are elsewhere."""
    outline = _Outline(render_page(pipeline))
    assert "One step, simulated" in outline.headings and "Was the simulation right?" not in outline.headings
    assert "measured" not in " ".join(outline.text) and "chinchilla run" not in " ".join(outline.text)


def test_hostile_names_stay_text(make_study: MakeStudy, measured: Study) -> None:
    """Markup in a question, a node's name, a reason or a span's label is shown, not obeyed."""
    attack = '<script>alert("1")</script>'
    study = make_study(question=attack, cluster__nodes__0__name=attack, search__minimum_ranks=2)
    timeline = study.search.best.timeline
    waits = (Wait(0, timeline.start_s, timeline.end_s, attack),)
    marked = replace(timeline, spans=tuple(replace(span, label=attack) for span in timeline.spans), waits=waits)
    study = replace(study, explanation=(attack,), notes=(attack,), caused=marked)
    page = render_page(study)
    assert "<script" not in page and "alert" in page
    assert attack in " ".join(_Outline(page).text)
    assert all(attack not in (value or "") or name == "aria-label" for name, value in _Outline(page).attributes)


def test_page_is_the_same_for_the_same_study(measured: Study) -> None:
    """No date, no random id: the same input gives the same bytes."""
    assert render_page(measured) == render_page(measured)


def test_page_serves_both_brightnesses_paper_and_small_screens(pipeline: Study) -> None:
    """Colours follow the reader's preference, paper has its own rules, tables and figures scroll inside their own box."""
    page = render_page(pipeline)
    assert "@media (prefers-color-scheme: dark)" in page and "@media print" in page and 'name="viewport"' in page
    boxes = re.findall(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+">', page)
    assert len(boxes) == page.count("<table") + page.count("<svg")


def test_scenario_without_a_question_still_has_a_heading(make_study: MakeStudy) -> None:
    """The name of the scenario stands in."""
    assert "How should two-nodes be split?" in render_page(make_study(question=""))


def test_scenario_can_be_read_back_from_the_page(pipeline: Study) -> None:
    """The page holds the whole scenario, so that its question can be asked again."""
    text = "".join(_Outline(render_page(pipeline)).text)
    assert '"global_batch_size": 64' in text and '"minimum_ranks": 2' in text


def test_page_tells_causes_sensitivity_and_provenance(thorough: Study) -> None:
    """What ranks wait for, which input matters how much, why alternatives lose, and where every input is from stand on it."""
    text = " ".join(_Outline(render_page(thorough)).text)
    assert thorough.sensitivity
    for part in (
        "Idle time by cause",
        "data on the way",
        "If an input were different",
        *(one.what for one in thorough.sensitivity.sensitivities),
        "Why the others lose",
        "the scenario states it",
        "Who sends how much to whom in a step",
        "no grid intensity",
        "job.optimizer",
    ):
        assert part in text


def test_headings_descend_and_tables_have_headers(thorough: Study) -> None:
    """One h1, then h2; every row and column of every table has a header, every figure a role, a title and a description."""
    page = render_page(thorough)
    tags = _Outline(page).tags
    assert tags.count("h1") == 1 and "h3" not in tags and '<html lang="en">' in page
    assert page.count("<table") == page.count("<caption>") == page.count("<thead>")
    assert page.count("<tr>") == page.count('<th scope="row"') + page.count("<thead>")
    assert page.count("<svg") == page.count('role="img"') == page.count("<desc>")


def test_page_of_many_devices_is_small(racks: Study) -> None:
    """Ranks that do the same share rows: a page of 64 devices is not heavy, and each figure is drawn."""
    page = render_page(racks)
    assert len(page) < 500_000
    assert page.count("<svg") >= 5


def test_costs_are_told_of_step_epoch_and_job_with_co2(racks: Study) -> None:
    """Where the scenario states samples of an epoch, steps and a grid intensity, all of them have a price and kg of CO2."""
    text = " ".join(_Outline(render_page(racks)).text)
    for part in ("one step", "one epoch of 3907 steps", "whole job: 10000 steps, 2560000 samples", "CO2 (modelled)", "kWh"):
        assert part in text


def test_long_tables_wait_behind_their_title(pipeline: Study) -> None:
    """More rows than a reader goes through open on demand; a short table is always there."""
    best = pipeline.search.best
    names = [f"plan {number}" for number in range(20)]
    many = replace(pipeline.search, runner_ups=tuple(replace(best, variant=name) for name in names))
    page = render_page(replace(pipeline, search=many))
    assert "<summary>Plans by split: 22 rows</summary>" in page
    assert "<summary>Cost of the chosen plan" not in page and _Outline(page).tags.count("details") >= 3
