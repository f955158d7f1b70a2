"""Text with unit <-> float in base units; the one place where either becomes the other.

    kind                 base     parse               format
    bytes                B        parse_bytes         format_bytes
    bandwidth            B/s      parse_bandwidth     format_bandwidth (in bit/s, as links are sold)
    time                 s        parse_seconds       format_seconds
    computing speed      flop/s   parse_flop_per_s    format_flop_per_s
    computing work       flop     parse_flop          format_flop
    power                W        parse_watt          format_watt
    energy               J        parse_joule         format_joule
    money                USD      parse_usd           format_usd
    price per time       USD/s    parse_usd_per_s     format_usd_per_s
    carbon intensity     kg/J     parse_kg_per_joule  format_kg_per_joule
    rate of requests     1/s      parse_requests_per_s  format_requests_per_s

Case counts only where it must: b is a bit and B a byte, m is milli and M is mega.

>>> parse_bandwidth("10 Gbit/s"), parse_bandwidth("10 gbps"), parse_bandwidth("1 GB/s")
(1250000000.0, 1250000000.0, 1000000000.0)
>>> parse_flop_per_s("10 TFLOPS"), parse_usd_per_s("1.8 USD/h"), parse_bytes("1 KiB")
(10000000000000.0, 0.0005, 1024.0)
>>> format_seconds(0.0032), format_bytes(1.6e6), format_bandwidth(1.25e9), format_usd(12.345)
('3.20 ms', '1.60 MB', '10.0 Gbit/s', '12.3 USD')
>>> format_usd(13.2e6), format_usd(0.0000123), format_flop(3.14e23)
('13.2 M USD', '0.0000123 USD', '314 Zflop')
>>> parse_seconds("10 GB")
Traceback (most recent call last):
ValueError: "10 GB" is a quantity of bytes, not of time; write for example "50 us"
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from chinchilla_sim.errors import Mistake

_NUMBER = r"[-+]?(?:(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|(?:nan|inf|infinity)\b)"
_NUMBER_AND_UNIT = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*", re.IGNORECASE | re.ASCII | re.DOTALL)
_WORDS_WITHOUT_CASE = re.compile("bit|flop|min", re.I)
_LETTERS_WITHOUT_CASE = re.compile("[^bBmM]+")


@dataclass(frozen=True, slots=True)
class QuantityKind:
    """What a number measures, and every unit it may be written in."""

    name: str
    base: str
    example: str
    factors: Mapping[str, Fraction]  # unit -> how many base units it is
    shown: tuple[str, ...]  # units of `format`, ascending

    def parse(self, text: str) -> float:
        """Number in base units; ValueError, whose one argument is a Mistake, says what to write instead."""
        match = _NUMBER_AND_UNIT.fullmatch(text)
        if not match:
            raise self._refusal(text, "is not a number with a unit")
        number, unit = match.groups()
        value = float(number.replace("_", ""))
        if not math.isfinite(value):
            raise self._refusal(text, "is not a finite number")
        if value < 0:
            raise self._refusal(text, "is negative")
        try:
            return float(Fraction(value) * self._factor(text, unit))
        except OverflowError:
            raise self._refusal(text, "is not a finite number") from None

    def format(self, value: float) -> str:
        """Three significant digits in the largest unit of which there is at least one."""
        if not math.isfinite(value):
            return f"{value} {self.base}"
        if value == 0:
            return f"0 {self.base}"
        for unit in reversed(self.shown):
            scaled = float(f"{abs(value) / float(self.factors[unit]):.2e}")
            if scaled >= 1:
                break
        return f"{'-' if value < 0 else ''}{_padded(scaled)} {unit}"

    def write(self, value: float) -> str:
        """Every digit in the base unit: `parse` returns the identical float."""
        return f"{value!r} {self.base}"

    def find_factor(self, unit: str) -> Fraction | None:
        """How many base units one `unit` is; None for a unit of another kind."""
        folded = _fold_case(unit)
        return next((factor for known, factor in self.factors.items() if _fold_case(known) == folded), None)

    def _factor(self, text: str, unit: str) -> Fraction:
        if not unit:
            raise self._refusal(text, "has no unit")
        factor = self.find_factor(unit)
        if factor is not None:
            return factor
        for kind in KINDS:
            if kind.find_factor(unit) is not None:
                raise self._refusal(text, f"is a quantity of {kind.name}, not of {self.name}")
        raise self._refusal(text, f"has the unknown unit {_quote(unit)}")

    def _refusal(self, text: str, what: str) -> ValueError:
        return ValueError(Mistake("", f"{_quote(text)} {what}", f'write for example "{self.example}"'))


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=False)


def _fold_case(unit: str) -> str:
    """One spelling for all that mean the same: b, B, m and M keep their case, but not inside bit, flop and min."""
    compact = _WORDS_WITHOUT_CASE.sub(lambda word: word[0].lower(), "".join(unit.split()))
    return _LETTERS_WITHOUT_CASE.sub(lambda letters: letters[0].lower(), compact)


def plain_number(value: float, digits: int = 3) -> str:
    """At most so many significant digits as people write them: without an exponent, as long as nobody must count the zeros.

    >>> plain_number(13.2e6), plain_number(0.00001234), plain_number(-2.50, 4), plain_number(0.0), plain_number(6.02e23)
    ('13200000', '0.0000123', '-2.5', '0', '6.02e+23')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = _padded(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _padded(value: float, digits: int = 3) -> str:
    """The same of a number other than 0, with all digits."""
    rounded = float(f"{value:.{digits - 1}e}")
    if not 1e-9 <= abs(rounded) < 1e15:
        return f"{value:.{digits - 1}e}"
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


_SMALL = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "µ": Fraction(1, 10**6), "μ": Fraction(1, 10**6), "m": Fraction(1, 1000)}
_LARGE = {"": Fraction(1), **{prefix: Fraction(1000**power) for power, prefix in enumerate("kMGTPEZY", start=1)}}
_BINARY = {prefix + "i": Fraction(1024**power) for power, prefix in enumerate("KMGTP", start=1)}
_TIME = {"s": Fraction(1), "min": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}
_KWH = Fraction(3_600_000)


def _scale(unit: str, prefixes: Mapping[str, Fraction], one: Fraction = Fraction(1)) -> dict[str, Fraction]:
    return {prefix + unit: factor * one for prefix, factor in prefixes.items()}


def _names(unit: str, prefixes: str = "kMGTPEZY") -> tuple[str, ...]:
    return (unit, *(prefix + unit for prefix in prefixes))


_BIT = Fraction(1, 8)
_BANDWIDTHS = {
    **_scale("B/s", _LARGE | _BINARY),
    **{name: factor for unit in ("bit/s", "b/s", "bps") for name, factor in _scale(unit, _LARGE, _BIT).items()},
}
_WATTS = {"mW": Fraction(1, 1000), "W": Fraction(1), "kW": Fraction(1000), "MW": Fraction(1000**2), "GW": Fraction(1000**3)}
_ENERGIES = _scale("J", _SMALL | _LARGE) | _scale("Wh", _LARGE, Fraction(3600))
_INTENSITIES = {"g/kWh": 1 / (1000 * _KWH), "kg/kWh": 1 / _KWH, "kg/MWh": 1 / (1000 * _KWH), "g/J": Fraction(1, 1000), "kg/J": Fraction(1)}

BYTES = QuantityKind("bytes", "B", "16 GiB", _scale("B", _LARGE | _BINARY), _names("B"))
BANDWIDTH = QuantityKind("bandwidth", "B/s", "10 Gbit/s", _BANDWIDTHS, _names("bit/s"))
SECONDS = QuantityKind("time", "s", "50 us", _scale("s", _SMALL) | _TIME, ("ns", "us", "ms", "s", "min", "h", "d"))
FLOP_PER_S = QuantityKind("computing speed", "flop/s", "10 Tflop/s", _scale("flop/s", _LARGE) | _scale("flops", _LARGE), _names("flop/s"))
FLOP = QuantityKind("computing work", "flop", "10 Gflop", _scale("flop", _LARGE), _names("flop"))
WATT = QuantityKind("power", "W", "300 W", _WATTS, tuple(_WATTS))
JOULE = QuantityKind("energy", "J", "2 kWh", _ENERGIES, ("nJ", "uJ", "mJ", "J", "kJ", "kWh", "MWh", "GWh"))
_MONEY = {"USD": Fraction(1), "M USD": Fraction(1000**2)}
USD = QuantityKind("money", "USD", "25 USD", _MONEY, tuple(_MONEY))
USD_PER_S = QuantityKind("price per time", "USD/s", "2 USD/h", {f"USD/{unit}": 1 / factor for unit, factor in _TIME.items()}, ("USD/h",))
KG_PER_JOULE = QuantityKind("carbon intensity", "kg/J", "400 g/kWh", _INTENSITIES, ("g/kWh",))
_REQUESTS = {f"{word}/{unit}": 1 / factor for word in ("requests", "request") for unit, factor in _TIME.items()}
REQUESTS_PER_S = QuantityKind("rate of requests", "requests/s", "200 requests/s", _REQUESTS, ("requests/h", "requests/min", "requests/s"))
KINDS = (BYTES, BANDWIDTH, SECONDS, FLOP_PER_S, FLOP, WATT, JOULE, USD, USD_PER_S, KG_PER_JOULE, REQUESTS_PER_S)

parse_bytes, format_bytes = BYTES.parse, BYTES.format
parse_bandwidth, format_bandwidth = BANDWIDTH.parse, BANDWIDTH.format
parse_seconds, format_seconds = SECONDS.parse, SECONDS.format
parse_flop_per_s, format_flop_per_s = FLOP_PER_S.parse, FLOP_PER_S.format
parse_flop, format_flop = FLOP.parse, FLOP.format
parse_watt, format_watt = WATT.parse, WATT.format
parse_joule, format_joule = JOULE.parse, JOULE.format
parse_usd, format_usd = USD.parse, USD.format
parse_usd_per_s, format_usd_per_s = USD_PER_S.parse, USD_PER_S.format
parse_kg_per_joule, format_kg_per_joule = KG_PER_JOULE.parse, KG_PER_JOULE.format
parse_requests_per_s, format_requests_per_s = REQUESTS_PER_S.parse, REQUESTS_PER_S.format
