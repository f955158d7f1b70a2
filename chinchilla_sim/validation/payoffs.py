"""Does compression pay? The best plan with compression beside the best without, simulated and measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chinchilla_sim.cost.accuracy import Interval


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two plans: mean seconds of a step, simulated, and as a run measured them; `drop` of accuracy, 0..1."""

    plan: str
    simulated_step_s: float
    measured_step_s: float | None = None
    drop: Interval | None = None


@dataclass(frozen=True, slots=True)
class Payoff:
    """Both plans of one scenario, over links of `bandwidth_bytes_per_s`."""

    name: str
    bandwidth_bytes_per_s: float
    plain: Side
    compressed: Side

    @property
    def chosen(self) -> Side:
        """What the planner takes of the two."""
        return self.compressed if self.compressed.simulated_step_s < self.plain.simulated_step_s else self.plain

    @property
    def simulated_speedup(self) -> float:
        """How many times as fast the step with compression is."""
        return self.plain.simulated_step_s / self.compressed.simulated_step_s

    @property
    def measured_speedup(self) -> float | None:
        """The same of the runs; None where there were none."""
        if self.plain.measured_step_s is None or self.compressed.measured_step_s is None:
            return None
        return self.plain.measured_step_s / self.compressed.measured_step_s

    @property
    def is_confirmed(self) -> bool | None:
        """Whether the plan that was chosen is the faster one in the runs as well."""
        measured = self.measured_speedup
        return None if measured is None else (measured > 1.0) == (self.simulated_speedup > 1.0)


def write_payoffs(payoffs: Sequence[Payoff], path: Path) -> None:
    """All rows in one move, so that a killed run leaves whole ones."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"payoffs": [asdict(payoff) for payoff in payoffs]}, indent=1) + "\n")
    partial.replace(path)


def read_payoffs(path: Path) -> list[Payoff]:
    """Rows that an earlier run has written; none where there is no file."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text())["payoffs"]
    return [Payoff(**row | {key: _side(row[key]) for key in ("plain", "compressed")}) for row in rows]


def _side(data: dict[str, object]) -> Side:
    drop = data["drop"]
    return Side(**data | {"drop": Interval(**drop) if isinstance(drop, dict) else None})  # type: ignore[arg-type]
