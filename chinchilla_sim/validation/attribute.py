"""Whose fault is the error of a step: simulated durations are replaced by measured ones, one cause after the other.

The simulated step is frozen first: every activity takes the seconds that it took, contention and all. Then, in the
order of CAUSES, measured figures take their place, and the step is evaluated again each time:

    computation  seconds of forward, backward and optimizer spans
    transfer     from both ends ready, and the connection free, to the arrival; collectives from the last member's joining
    waiting      what starts late although all that it waited for from other ranks is there; also that ranks do not begin
                 a step together: one may run ahead of the end of the step before
    fixed cost   what passes between one action of a rank and the next
    codec        seconds of encode and decode spans

What the step shrinks by at each replacement is that cause's share of the error; what is left between the step of measured
figures alone and the measured step is the residual:

    simulated - measured = sum of shares + residual

A message that was there before its receiver looked arrived at an unknown moment: it keeps its simulated seconds, but
arrives no later than it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chinchilla_sim.simulator.activities import ActivityGraph, Times
from chinchilla_sim.simulator.replay import replay
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.matching import Observations, Observed

Cause = Literal["computation", "transfer", "waiting", "fixed cost", "codec"]
CAUSES: tuple[Cause, ...] = ("computation", "transfer", "waiting", "fixed cost", "codec")


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of a step's error that one cause explains: negative where the simulation is too fast."""

    cause: Cause
    error_s: float


@dataclass(frozen=True)
class Attribution:
    """A step's error by cause; `unmatched` counts simulated spans that have no measured counterpart."""

    simulated_step_s: float
    measured_step_s: float
    shares: tuple[Share, ...]
    residual_s: float
    unmatched: int = 0

    @property
    def error_s(self) -> float:
        """Simulated less measured seconds of the step."""
        return self.simulated_step_s - self.measured_step_s

    @property
    def residual_share(self) -> float:
        """The residual as a share of the error (0 where there is no error)."""
        return abs(self.residual_s / self.error_s) if self.error_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: seconds of error by cause, in order, then the residual."""
        return {
            "error_s": self.error_s,
            "error_by_cause_s": {share.cause: share.error_s for share in self.shares} | {"residual": self.residual_s},
            "residual_share": self.residual_share,
            "unmatched_spans": self.unmatched,
        }


def attribute(
    graph: ActivityGraph, simulated: Times, measured: Timeline, measured_step_s: float, between_s: Sequence[float] = ()
) -> Attribution:
    """The error of a simulated step by cause.

    `simulated` are the times of the graph's activities, `measured` is one recorded step, `measured_step_s` the seconds to
    explain (a median over steps). `between_s` is what the simulation counts, on each rank, into a pass for the program's
    work before it.
    """
    return _Story(Observations(graph, simulated, measured), between_s).tell(measured_step_s)


class _Story:
    """The simulated step on its way to the measured one: seconds and lags that change cause by cause."""

    def __init__(self, seen: Observations, between_s: Sequence[float]) -> None:
        self.seen, self.between_s = seen, between_s
        pairs = zip(seen.simulated.start_s, seen.simulated.finish_s, strict=True)
        self.seconds = [finish - start for start, finish in pairs]
        self.ahead_s = 0.0
        self.lags_s = {(before, behind): lag_s for behind, row in seen.before.items() for before, lag_s in row.items()}

    def tell(self, measured_step_s: float) -> Attribution:
        """Replace cause after cause, and see what the step shrinks by."""
        steps = [self._step_s()]
        for cause in CAUSES:
            for one in self.seen.observed:
                self._replace(one, cause)
            if cause == "waiting":
                self.ahead_s = self.seen.measured.ahead_s
            steps.append(self._step_s())
        shares = tuple(Share(cause, steps[index] - steps[index + 1]) for index, cause in enumerate(CAUSES))
        return Attribution(steps[0], measured_step_s, shares, steps[-1] - measured_step_s, self.seen.unmatched)

    def _step_s(self) -> float:
        arcs = [(before, behind, lag_s) for (before, behind), lag_s in self.lags_s.items()]
        return max(replay(self.seen.graph.retimed(self.seconds, arcs)).finish_s, default=0.0) - self.ahead_s

    def _replace(self, one: Observed, cause: Cause) -> None:
        if not one.compute:
            if cause == "transfer":
                self._replace_transfer(one)
            elif cause == "waiting":
                self._replace_start(one, one.start_s)
            return
        if cause == ("codec" if one.category == "codec" else "computation"):
            self.seconds[one.last] = one.duration_s + self._between_s(one)
        if cause == "fixed cost":
            self.seconds[one.last] -= self._between_s(one)
        if cause == ("fixed cost" if self.seen.follows_own(one) else "waiting"):
            self._replace_start(one, one.start_s)
        elif cause == "waiting" and self.seen.begins(one):
            self._replace_start(one, self.seen.begun_s[one.rank])

    def _between_s(self, one: Observed) -> float:
        return self.between_s[one.rank] if self.between_s and one.category in ("forward", "backward") else 0.0

    def _replace_transfer(self, one: Observed) -> None:
        """One activity in place of all; the latencies before it and the rounds within it are part of that."""
        seconds = self.seen.transfer_s(one)
        for number in range(one.first, one.last + 1):
            self.seconds[number] = 0.0
            for before in self.seen.before.get(number, ()):
                self.lags_s[before, number] = 0.0
        self.seconds[one.last] = seconds

    def _replace_start(self, one: Observed, start_s: float) -> None:
        """What passed between the last thing that was waited for and the start becomes a lag behind that thing."""
        last = self.seen.last_source(one)
        if last is None:
            return
        end_s, source = last
        waiting = [number for number in range(one.first, one.last + 1) if source in self.seen.before.get(number, ())]
        for number in waiting or [one.first]:
            self.lags_s[source, number] = max(0.0, start_s - end_s)
