"""Rows of the testbed's benchmark."""

from pathlib import Path

import pytest

from chinchilla_sim.validation.testbed_cases import LinkCase, read_cases, relative_spread, spreads, write_cases


def case(name: str, simulated_s: float, slow: float = 25e6, fast: float = 25e6) -> LinkCase:
    """A case that took a second."""
    return LinkCase(name, "2 replicas", 2, slow, fast, simulated_s, 1.0, 0.01, 40, 1)


def test_errors_are_grouped_by_link() -> None:
    """Cases at 200 Mbit/s or below count together, and each kind of link by itself."""
    cases = [case("a", 1.01), case("b", 0.97), case("c", 1.2, 125e6, 125e6), case("d", 1.05, 6.25e6, 25e6)]
    found = {group.name: group for group in spreads(cases)}
    assert set(found) == {"all", "up to 200 Mbit/s", "faster", "200 Mbit/s", "1.00 Gbit/s", "one slow link"}
    assert (found["all"].count, found["up to 200 Mbit/s"].count) == (4, 3)
    assert found["up to 200 Mbit/s"].median == pytest.approx(0.03) and found["faster"].worst == pytest.approx(0.2)


def test_rows_read_back(tmp_path: Path) -> None:
    """What a killed run had measured is there when it goes on."""
    cases = [case("a", 1.01), case("b", 0.97)]
    assert read_cases(tmp_path / "rows.csv") == []
    write_cases(cases, tmp_path / "rows.csv")
    assert read_cases(tmp_path / "rows.csv") == cases


def test_spread_is_that_of_the_middle_half() -> None:
    """Quartiles 1.0 and 1.1 around a median of 1.05."""
    assert relative_spread([0.5, 1.0, 1.05, 1.1, 9.0]) == pytest.approx(0.1 / 1.05)
