"""Compare a simulated step with measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from chinchilla_sim.timeline import Timeline, Wait
from chinchilla_sim.validation.peaks import MeasuredPeak, PeakRow, peak_rows

if TYPE_CHECKING:
    from chinchilla_sim.validation.attribute import Attribution


@dataclass(frozen=True)
class Measurement:
    """What a real run gave: seconds of every recorded step after warm-up, one recorded timeline, and its metrics.

    `losses` are global means per step from the first; `metrics` are those of the job's `evaluate`; `peaks` are of each rank.
    `kept` are the timelines of all steps that were recorded in full; they are not part of the JSON form.
    """

    step_s: tuple[float, ...]
    timeline: Timeline
    losses: tuple[float, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    epoch_s: tuple[float, ...] = ()
    weights: str | None = None
    peaks: tuple[MeasuredPeak, ...] = ()
    kept: tuple[Timeline, ...] = field(default=(), compare=False, repr=False)

    @property
    def median_step_s(self) -> float:
        """Median seconds of a step."""
        return median(self.step_s)

    @property
    def spread(self) -> tuple[float, float]:
        """5th and 95th percentile of the step's seconds."""
        if len(self.step_s) < 2:
            return self.step_s[0], self.step_s[0]
        cuts = quantiles(self.step_s, n=20, method="inclusive")
        return cuts[0], cuts[-1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        zero_s = self.timeline.start_s
        return {
            "step_s": list(self.step_s),
            "timeline": self.timeline.to_dict(),
            "losses": list(self.losses),
            "metrics": dict(self.metrics),
            "epoch_s": list(self.epoch_s),
            "weights": self.weights,
            "waits": [[w.rank, w.start_s - zero_s, w.end_s - zero_s, w.cause, w.on_rank] for w in self.timeline.waits],
            "peaks": [asdict(peak) for peak in self.peaks],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Measurement:
        """Inverse of `to_dict`."""
        waits = tuple(Wait(*row) for row in data.get("waits", ()))
        return Measurement(
            step_s=tuple(data["step_s"]),
            timeline=replace(Timeline.from_dict(data["timeline"]), waits=waits),
            losses=tuple(data["losses"]),
            metrics=dict(data["metrics"]),
            epoch_s=tuple(data["epoch_s"]),
            weights=data["weights"],
            peaks=tuple(MeasuredPeak(**peak) for peak in data.get("peaks", ())),
        )


@dataclass(frozen=True)
class Comparison:
    """Simulated against measured seconds of one step, and of each category on each rank.

    The `attribution` tells the error of the step by cause, `peaks` the memory of each rank, where those are known.
    """

    simulated_step_s: float
    measured_step_s: float
    measured_p5_s: float
    measured_p95_s: float
    step_count: int
    categories: tuple[CategoryRow, ...]
    attribution: Attribution | None = None
    peaks: tuple[PeakRow, ...] = ()

    @property
    def relative_error(self) -> float:
        """(simulated - measured) / measured: negative where the simulation is too fast."""
        return self.simulated_step_s / self.measured_step_s - 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as `chinchilla validate run --json` prints it."""
        return {
            "simulated_step_s": self.simulated_step_s,
            "measured_step_s": self.measured_step_s,
            "measured_p5_s": self.measured_p5_s,
            "measured_p95_s": self.measured_p95_s,
            "step_count": self.step_count,
            "relative_error": self.relative_error,
            "categories": [
                {"rank": row.rank, "category": row.category, "simulated_s": row.simulated_s, "measured_s": row.measured_s}
                for row in self.categories
            ],
            **(self.attribution.to_dict() if self.attribution else {}),
            **({"memory": [row.to_dict() for row in self.peaks]} if self.peaks else {}),
        }


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """Seconds of one category (forward, backward, transfer, ... or idle) on one rank."""

    rank: int
    category: str
    simulated_s: float
    measured_s: float


def compare(simulated: Timeline, measured: Measurement, attribution: Attribution | None = None) -> Comparison:
    """Simulated against measured; the categories are of the recorded timeline whose step is nearest the median."""
    low, high = measured.spread
    return Comparison(
        simulated_step_s=simulated.step_s,
        measured_step_s=measured.median_step_s,
        measured_p5_s=low,
        measured_p95_s=high,
        step_count=len(measured.step_s),
        categories=tuple(_category_rows(simulated, measured.timeline)),
        attribution=attribution,
        peaks=peak_rows(simulated, measured.peaks),
    )


def _category_rows(simulated: Timeline, measured: Timeline) -> Sequence[CategoryRow]:
    rows = []
    for rank in range(simulated.rank_count):
        ours, theirs = simulated.category_s(rank), measured.category_s(rank)
        for timeline, totals in ((simulated, ours), (measured, theirs)):
            totals["idle"] = timeline.step_s - timeline.busy_s(rank)
        rows += [CategoryRow(rank, name, ours.get(name, 0.0), theirs.get(name, 0.0)) for name in sorted({*ours, *theirs})]
    return rows
