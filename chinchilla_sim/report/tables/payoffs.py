"""Tables of what compression pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_bandwidth, format_seconds
from chinchilla_sim.validation.payoffs import Payoff, Side

HEADERS = ("links", "best with compression", "simulated", "measured", "accuracy", "best without", "simulated", "measured", "speed-up")


def payoffs_table(payoffs: Sequence[Payoff]) -> Table:
    """A row per scenario: both plans, and how many times as fast the compressed one is, simulated and measured."""
    rows = []
    for one in payoffs:
        speedups = f"{one.simulated_speedup:.2f}x" + ("" if one.measured_speedup is None else f", {one.measured_speedup:.2f}x measured")
        chosen = "chosen: " if one.chosen is one.compressed else ""
        plain = "" if chosen else "chosen: "
        rows.append(
            (
                *(
                    format_bandwidth(one.bandwidth_bytes_per_s),
                    chosen + one.compressed.plan,
                    *_seconds(one.compressed),
                    _drop(one.compressed),
                ),
                *(plain + one.plain.plan, *_seconds(one.plain), speedups),
            )
        )
    ran = [one for one in payoffs if one.is_confirmed is not None]
    right = sum(bool(one.is_confirmed) for one in ran)
    note = f"the chosen plan is the faster one of {right} of the {len(ran)} pairs that ran" if ran else "nothing was run"
    return Table("Does compression pay?", HEADERS, tuple(rows), text_columns=(0, 1, 5), note=note)


def payoffs_dict(payoffs: Sequence[Payoff]) -> dict[str, Any]:
    """JSON-ready form."""
    rows = [
        asdict(one)
        | {
            "chosen": "compressed" if one.chosen is one.compressed else "plain",
            "simulated_speedup": one.simulated_speedup,
            "measured_speedup": one.measured_speedup,
            "is_confirmed": one.is_confirmed,
        }
        for one in payoffs
    ]
    return {"payoffs": rows}


def _seconds(side: Side) -> tuple[str, str]:
    return format_seconds(side.simulated_step_s), "" if side.measured_step_s is None else format_seconds(side.measured_step_s)


def _drop(side: Side) -> str:
    """Change of accuracy with its 95 % interval, in percent."""
    if side.drop is None:
        return "not measured"
    return f"{-100 * side.drop.estimate:+.1f} % ({-100 * side.drop.high:+.1f} to {-100 * side.drop.low:+.1f})"
