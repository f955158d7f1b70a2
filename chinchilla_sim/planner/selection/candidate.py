"""What a search finds: plans with their simulated step, and how far the best can be from what is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chinchilla_sim.planner.accuracy_rule import AccuracyRule, Forecast
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.serving import Serving
from chinchilla_sim.timeline import Timeline

if TYPE_CHECKING:
    from chinchilla_sim.planner.selection.front import FrontPlan
    from chinchilla_sim.planner.selection.limits import Limits


@dataclass(frozen=True)
class Candidate:
    """A plan with its simulated step; `objective` is what the search minimises (seconds, USD or joule per step; seconds of latency, or to
    the target accuracy)."""

    plan: Plan
    pricing: Pricing
    timeline: Timeline
    objective: float
    variant: str = ""
    """What was done to the model, where the search may choose that."""
    serving: Serving | None = None
    """What a load of requests makes of it, where the job states one."""

    forecast: Forecast | None = None
    """What it is to do to accuracy and number of steps, where that was measured or is asked for."""

    @property
    def title(self) -> str:
        """The plan in words, with the variant of the model that it is for."""
        return f"{self.plan.describe()}; model {self.variant}" if self.variant else self.plan.describe()

    @property
    def step_s(self) -> float:
        """Simulated seconds of one step."""
        return self.timeline.step_s


@dataclass(frozen=True)
class SearchResult:
    """The winner, the best plan of other splits, and one rank alone (None where it does not fit).

    `front` are the simulated plans that no other one dominates; `beyond` plans fit into memory, but not within the `limits`.
    No plan of the `screened` configurations takes less than `lower_bound_s` seconds, or less than `lower_bound` of what is minimised.
    """

    best: Candidate
    runner_ups: tuple[Candidate, ...]
    one_rank: Candidate | None
    considered: int
    simulated: int
    infeasible: int
    screened: int = 0
    lower_bound_s: float = 0.0
    lower_bound: float = 0.0
    truncated: bool = False
    front: tuple[FrontPlan, ...] = ()
    limits: Limits | None = None
    beyond: int = 0
    overloaded: int = 0
    """Simulated plans that do not carry the arrivals of the job, or not in time."""
    accuracy: AccuracyRule | None = None
    """By which plans were judged for their accuracy."""

    @property
    def gap(self) -> float | None:
        """How much more of what is minimised than any plan of the space needs at least, as a share of that bound."""
        return self.best.objective / self.lower_bound - 1 if self.lower_bound > 0 else None
