"""The page in a real browser: nothing is cut off, nothing covers anything else, nothing is asked of the network."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_sim.report.pages.page import render_page
from chinchilla_sim.report.pages.run_page import render_run_page
from chinchilla_sim.report.study import Study
from tests.report.browser import Browser, find_browser
from tests.report.cells import MakeStudy

MEASURE = (Path(__file__).parent / "measure.js").read_text()
KINDS = ("outside", "cut", "stuck", "covering", "figures", "faint")
VIEWS = [(1280, "light", "screen"), (1280, "dark", "screen"), (390, "light", "screen"), (390, "dark", "screen"), (718, "light", "print")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium; where there is none the tests are skipped, in CI they fail."""
    program = find_browser()
    if program is None:
        assert not os.environ.get("CI"), "no Chromium: .ci/run installs it"
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(make_study: MakeStudy, thorough: Study, racks: Study, served: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a small study that ran, of one on many devices, of a service, and of a run alone."""
    assert thorough.comparison and thorough.measurement
    folder = tmp_path_factory.mktemp("pages")
    long_words = make_study(question="x" * 300, cluster__nodes__0__name="n" * 60, search__minimum_ranks=2)
    texts = {
        "measured": render_page(thorough),
        "racks": render_page(racks),
        "served": render_page(served),
        "long words": render_page(replace(long_words, notes=("y" * 300,))),
        "run": render_run_page("a run", thorough.timeline, thorough.measurement.timeline, thorough.comparison),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize(("width", "scheme", "media"), VIEWS)
@pytest.mark.parametrize("name", ["measured", "racks", "served", "long words", "run"])
def test_page_fits_its_window(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str, media: str) -> None:
    """At any width, brightness and on paper: no sideways scrolling, no text cut off, covered or too faint, nothing on the console."""
    browser.show(pages[name], width, scheme, media)
    found = browser.evaluate(MEASURE)
    assert {kind: found[kind] for kind in KINDS if found[kind]} == {}
    assert found["overflow"] <= 0
    assert found["dark"] == (scheme == "dark")
    assert browser.complaints() == []


def test_page_prints(browser: Browser, pages: dict[str, Path]) -> None:
    """The browser makes a document of several pages of it."""
    browser.show(pages["racks"], 1280)
    document = browser.printed()
    assert document.startswith(b"%PDF") and document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") > 2


def test_measuring_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """A page with a wide block, covered texts, a faint word and a script that fails is found out."""
    page = tmp_path / "wrong.html"
    svg = '<svg aria-label="s" width="100" height="40"><text x="5" y="20">one text</text><text x="9" y="20">another</text></svg>'
    page.write_text(
        f"<!DOCTYPE html><body style='background:#fff'><div style='width:2000px'>wide</div><p style='color:#ccc'>faint</p>{svg}"
        "<script>console.error('no'); fetch('https://example.org')</script>"
    )
    browser.show(page, 390)
    found = browser.evaluate(MEASURE)
    assert found["overflow"] > 0 and found["outside"] and found["figures"] and found["faint"]
    assert len(browser.complaints()) >= 2
