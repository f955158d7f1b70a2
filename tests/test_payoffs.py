"""Does compression pay? The pair of plans that is weighed, and what is told of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_sim.cost.accuracy import Interval
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.payoffs import can_run, plan_both, weigh
from chinchilla_sim.planner.accuracy import changes_of
from chinchilla_sim.report.tables.payoffs import payoffs_dict, payoffs_table
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.validation.payoffs import Payoff, Side, read_payoffs, write_payoffs

ROOT = Path(__file__).parent.parent
LINKS = ("50mbit", "200mbit", "1gbit", "10gbit")
PAIR = Payoff("x", 1e6, Side("whole", 0.2, 0.3), Side("small", 0.1, 0.1, Interval(0.001, -0.002, 0.004)))


def scenario(link: str) -> Path:
    return ROOT / "scenarios" / "compression" / f"{link}.toml"


@pytest.fixture(autouse=True)
def _stored_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHINCHILLA_CALIBRATION", str(ROOT / "tests" / "data" / "calibration.json"))
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path))


@pytest.mark.parametrize("link", LINKS)
def test_one_plan_of_a_pair_sends_everything_as_it_is(link: str) -> None:
    """The plain plan changes nothing of what is learned; the other does, within what the scenario allows to lose."""
    setting, plain, compressed = plan_both(scenario(link))
    assert changes_of(plain.plan, CompressionSpec()) == ()
    assert changes_of(compressed.plan, CompressionSpec())
    floor, drop = setting.scenario.search.max_accuracy_drop, weigh(scenario(link), None, print).compressed.drop
    assert floor is not None and drop is not None and drop.high <= floor


def test_links_decide_the_plan() -> None:
    """Over the slowest and the fastest links different plans are chosen, with and without compression; the chosen one is the faster."""
    slow, fast = (weigh(scenario(link), None, print) for link in (LINKS[0], LINKS[-1]))
    assert slow.chosen.plan != fast.chosen.plan
    assert slow.plain.plan != fast.plain.plan
    assert all(pair.chosen.simulated_step_s == min(pair.plain.simulated_step_s, pair.compressed.simulated_step_s) for pair in (slow, fast))


def test_machines_elsewhere_are_not_run() -> None:
    """Scenarios of machines like this one that are elsewhere are simulated only."""
    assert [can_run(scenario(link)) for link in LINKS] == [True, True, True, False]


def test_a_search_without_compression_has_no_pair(tmp_path: Path) -> None:
    """What lists nothing that compresses is told so, with the cure."""
    text = scenario("200mbit").read_text().replace("gradient_buckets = [1, 2]", 'gradient_codecs = ["none"]\nactivation_codecs = ["none"]')
    path = tmp_path / "plain.toml"
    path.write_text(text.replace("../accuracy/", f"{ROOT}/scenarios/accuracy/"))
    with pytest.raises(ScenarioError, match="list codecs, or local_steps above 1"):
        plan_both(path)


def test_speedups_are_of_the_compressed_plan() -> None:
    """Simulated 0.2 / 0.1, measured 0.3 / 0.1; the choice is confirmed as both are above 1."""
    assert (PAIR.simulated_speedup, PAIR.measured_speedup, PAIR.is_confirmed) == pytest.approx((2.0, 3.0, True))
    slower = replace(PAIR, compressed=replace(PAIR.compressed, measured_step_s=0.4))
    assert (PAIR.chosen.plan, slower.is_confirmed) == ("small", False)
    unrun = replace(PAIR, plain=replace(PAIR.plain, measured_step_s=None))
    assert (unrun.measured_speedup, unrun.is_confirmed) == (None, None)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    """What was written is read again; no file is no rows."""
    write_payoffs([PAIR, replace(PAIR, name="y")], tmp_path / "rows.json")
    assert read_payoffs(tmp_path / "rows.json") == [PAIR, replace(PAIR, name="y")]
    assert read_payoffs(tmp_path / "none.json") == []


def test_the_table_says_which_plan_is_chosen_and_whether_it_is_confirmed() -> None:
    """Both speed-ups stand in the row, the accuracy as a change with its interval, the count of confirmed choices below."""
    table = payoffs_table([PAIR])
    assert table.rows[0][1:5] == ("chosen: small", "100 ms", "100 ms", "-0.1 % (-0.4 to +0.2)")
    assert table.rows[0][-1] == "2.00x, 3.00x measured"
    assert table.note == "the chosen plan is the faster one of 1 of the 1 pairs that ran"
    assert payoffs_dict([PAIR])["payoffs"][0]["chosen"] == "compressed"
