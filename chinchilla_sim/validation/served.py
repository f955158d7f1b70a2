"""Simulated requests beside measured ones: latencies, throughput, and the seconds of each stage behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from chinchilla_sim.planner.serving import ClosedLoop, Load, Serving, Tandem, serving_of

COMPARED = ("p50_s", "p95_s", "p99_s", "mean_s", "throughput_per_s", "utilization", "batch_size")


@dataclass(frozen=True, slots=True)
class Pass:
    """A batch in one stage of one replica: its requests, and from when to when it was computed."""

    replica: int
    stage: int
    first: int
    size: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class ServedRun:
    """What a real run on requests gave; seconds count from the opening of the line.

    `arrivals_s` and `answered_s` are by request, `passes` those of all batches through all stages. `fixed_sizes` are the batch sizes that
    were computed, all others filled up to the next, where torch.export could not trace the model for any number of samples.
    """

    arrivals_s: tuple[float, ...]
    answered_s: tuple[float, ...]
    passes: tuple[Pass, ...]
    sent_bytes: int = 0
    fixed_sizes: tuple[int, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    def serving(self, demand: Load | ClosedLoop, tandems: Sequence[Tandem]) -> Serving:
        """The same figures as the simulator's; the capacity is the simulated one, which a run does not show."""
        batches = sorted((one for one in self.passes if one.stage == 0), key=lambda one: one.first)
        capacity = sum(tandem.capacity_per_s for tandem in tandems)
        busy = mean(max(self._busy_s(replica).values()) for replica in range(len(tandems)))
        answered = [self.answered_s[one.first] for one in batches]
        sizes = [one.size for one in batches]
        if isinstance(demand, ClosedLoop):
            return replace(serving_of(None, capacity, self.arrivals_s, sizes, answered, busy), concurrency=demand.concurrency)
        return serving_of(demand.arrivals_per_s, capacity, self.arrivals_s, sizes, answered, busy)

    def _busy_s(self, replica: int) -> dict[int, float]:
        total: dict[int, float] = {0: 0.0}
        for one in self.passes:
            if one.replica == replica:
                total[one.stage] = total.get(one.stage, 0.0) + one.end_s - one.start_s
        return total


@dataclass(frozen=True, slots=True)
class StageRow:
    """Mean seconds of a batch in one stage, over the batches of the run: as simulated for their sizes, and as measured."""

    stage: int
    simulated_s: float
    measured_s: float


@dataclass(frozen=True)
class ServedComparison:
    """Simulated against measured requests, of the same arrivals."""

    simulated: Serving
    measured: Serving
    stages: tuple[StageRow, ...]
    request_count: int
    fixed_sizes: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "simulated": self.simulated.to_dict(),
            "measured": self.measured.to_dict(),
            "relative_errors": {name: relative_error(getattr(self.simulated, name), getattr(self.measured, name)) for name in COMPARED},
            "stages": [{"stage": row.stage, "simulated_s": row.simulated_s, "measured_s": row.measured_s} for row in self.stages],
            "request_count": self.request_count,
            "fixed_sizes": list(self.fixed_sizes),
        }


def relative_error(simulated: float, measured: float) -> float:
    """(simulated - measured) / measured: negative where the simulation is too fast.

    >>> relative_error(3.0, 2.0)
    0.5
    """
    return simulated / measured - 1.0


def compare_served(simulated: Serving, run: ServedRun, demand: Load | ClosedLoop, tandems: Sequence[Tandem]) -> ServedComparison:
    """A run beside the simulation of the same arrivals."""
    rows = []
    for stage in sorted({one.stage for one in run.passes}):
        own = [one for one in run.passes if one.stage == stage]
        expected = mean(tandems[one.replica].stations[2 * stage].busy_s[one.size - 1] for one in own)
        rows.append(StageRow(stage, expected, mean(one.end_s - one.start_s for one in own)))
    return ServedComparison(simulated, run.serving(demand, tandems), tuple(rows), len(run.arrivals_s), run.fixed_sizes)
