"""Text with unit <-> float in base units."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.units import (
    KINDS,
    QuantityKind,
    format_bandwidth,
    format_bytes,
    format_flop,
    format_flop_per_s,
    format_joule,
    format_kg_per_joule,
    format_seconds,
    format_usd,
    format_usd_per_s,
    format_watt,
    parse_bandwidth,
    parse_bytes,
    parse_flop,
    parse_flop_per_s,
    parse_joule,
    parse_kg_per_joule,
    parse_seconds,
    parse_usd,
    parse_usd_per_s,
    parse_watt,
)

Parse = Callable[[str], float]
Format = Callable[[float], str]
any_kind = st.sampled_from(KINDS)
amounts = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "16 GiB", 16 * 2**30),
        (parse_bytes, "1.6MB", 1.6e6),
        (parse_bytes, "4 kB", 4000),
        (parse_bytes, "4 KB", 4000),
        (parse_bandwidth, "10 Gbit/s", 1.25e9),
        (parse_bandwidth, "10 GBit/s", 1.25e9),
        (parse_bandwidth, "10 Gbps", 1.25e9),
        (parse_bandwidth, "200 Gb/s", 25e9),
        (parse_bandwidth, "200 Mbit/s", 25e6),
        (parse_bandwidth, "1 GB/s", 1e9),
        (parse_seconds, "50 us", 50e-6),
        (parse_seconds, "50 µs", 50e-6),
        (parse_seconds, "3 ns", 3e-9),
        (parse_seconds, "2 Min", 120),
        (parse_seconds, "1.5 h", 5400),
        (parse_seconds, "2 d", 172800),
        (parse_flop_per_s, "10 Tflop/s", 1e13),
        (parse_flop_per_s, "10 TFLOPS", 1e13),
        (parse_flop_per_s, "10 TFLOP/s", 1e13),
        (parse_flop_per_s, "312e12 flop/s", 312e12),
        (parse_flop, "1e10 flop", 1e10),
        (parse_flop, "2 Gflop", 2e9),
        (parse_flop, "1Eflop", 1e18),
        (parse_watt, "0.3 kW", 300),
        (parse_joule, "1 kWh", 3.6e6),
        (parse_usd, "12.50 USD", 12.5),
        (parse_usd, "13.2 M USD", 13.2e6),
        (parse_usd, "13.2MUSD", 13.2e6),
        (parse_usd_per_s, "1.8 USD/h", 0.0005),
        (parse_kg_per_joule, "400 g/kWh", 1 / 9e6),
    ],
)
def test_text_becomes_base_units(parse: Parse, text: str, value: float) -> None:
    """Every spelling of the house means one number, to the last bit."""
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_bandwidth, "10", '"10" has no unit; write for example "10 Gbit/s"'),
        (parse_bandwidth, "10 parsec", '"10 parsec" has the unknown unit "parsec"; write for example "10 Gbit/s"'),
        (parse_bandwidth, "10 GB", '"10 GB" is a quantity of bytes, not of bandwidth; write for example "10 Gbit/s"'),
        (parse_bandwidth, "10 mbps", '"10 mbps" has the unknown unit "mbps"; write for example "10 Gbit/s"'),
        (parse_bytes, "4 Gb", '"4 Gb" has the unknown unit "Gb"; write for example "16 GiB"'),
        (parse_flop, "2 TFLOPS", '"2 TFLOPS" is a quantity of computing speed, not of computing work; write for example "10 Gflop"'),
        (parse_seconds, "-1 s", '"-1 s" is negative; write for example "50 us"'),
        (parse_seconds, "nan s", '"nan s" is not a finite number; write for example "50 us"'),
        (parse_seconds, "inf s", '"inf s" is not a finite number; write for example "50 us"'),
        (parse_seconds, "1e400 s", '"1e400 s" is not a finite number; write for example "50 us"'),
        (parse_bytes, "1e308 TB", '"1e308 TB" is not a finite number; write for example "16 GiB"'),
        (parse_usd_per_s, "2 $/h", '"2 $/h" has the unknown unit "$/h"; write for example "2 USD/h"'),
        (parse_watt, "", '"" is not a number with a unit; write for example "300 W"'),
        (parse_watt, "many W", '"many W" is not a number with a unit; write for example "300 W"'),
        (parse_watt, "1,000 W", '"1,000 W" has the unknown unit ",000 W"; write for example "300 W"'),
    ],
)
def test_a_wrong_quantity_says_what_to_write(parse: Parse, text: str, message: str) -> None:
    """No unit, unknown unit, another kind, negative, not finite: each is refused with an example."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("format_", "value", "text"),
    [
        (format_seconds, 0.0032, "3.20 ms"),
        (format_seconds, 0.9996, "1.00 s"),
        (format_seconds, 0.9994, "999 ms"),
        (format_seconds, 59.99, "1.00 min"),
        (format_seconds, 5e-10, "0.500 ns"),
        (format_seconds, 0.0, "0 s"),
        (format_seconds, -0.003, "-3.00 ms"),
        (format_seconds, math.inf, "inf s"),
        (format_bytes, 1.6e6, "1.60 MB"),
        (format_bandwidth, 1.25e9, "10.0 Gbit/s"),
        (format_flop, 123456789.0, "123 Mflop"),
        (format_flop_per_s, 312e12, "312 Tflop/s"),
        (format_flop, 3.14e23, "314 Zflop"),
        (format_usd, 12345.0, "12300 USD"),
        (format_usd, 13.2e6, "13.2 M USD"),
        (format_usd, 2e12, "2000000 M USD"),
        (format_usd, 0.00032, "0.000320 USD"),
        (format_usd, 5.56e-7, "0.000000556 USD"),
        (format_usd_per_s, 1e6, "3600000000 USD/h"),
        (format_usd_per_s, 2 / 3600, "2.00 USD/h"),
        (format_joule, 5e6, "1.39 kWh"),
        (format_watt, 300.0, "300 W"),
        (format_kg_per_joule, 0.4 / 3.6e6, "400 g/kWh"),
    ],
)
def test_numbers_are_shown_with_three_significant_digits(format_: Format, value: float, text: str) -> None:
    """The largest unit of which there is at least one, after rounding."""
    assert format_(value) == text


@settings(deadline=None)
@given(any_kind, amounts)
def test_written_numbers_parse_to_the_identical_float(kind: QuantityKind, value: float) -> None:
    """plan.json loses no bit of any quantity."""
    assert kind.parse(kind.write(value)) == value


@settings(deadline=None)
@given(any_kind, st.floats(min_value=1e-15, max_value=1e20))
def test_shown_numbers_parse_back_within_half_a_percent(kind: QuantityKind, value: float) -> None:
    """Three significant digits are off by at most 0.5 %, whatever the unit."""
    assert math.isclose(kind.parse(kind.format(value)), value, rel_tol=0.00501)


@settings(deadline=None)
@given(any_kind, st.text())
def test_no_text_gets_past_as_something_else_than_a_refusal(kind: QuantityKind, text: str) -> None:
    """Any text is a finite number that is not negative, or a ValueError with an example."""
    try:
        assert 0 <= kind.parse(text) < math.inf
    except ValueError as error:
        assert kind.example in str(error)


def test_units_of_different_kinds_share_no_spelling() -> None:
    """A text says by its unit what it measures: no unit belongs to two kinds."""
    for kind in KINDS:
        for unit in kind.factors:
            assert [other.name for other in KINDS if other.find_factor(unit) is not None] == [kind.name]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_example_of_a_kind_is_right(kind: QuantityKind) -> None:
    """Whoever copies the example from an error message gets past it."""
    assert kind.parse(kind.example) > 0
