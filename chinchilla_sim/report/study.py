"""Study: everything that a report shows about one scenario."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.money import Expense, expense
from chinchilla_sim.cost.rent import Rent, rent
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.candidate import SearchResult
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.validation.compare import Comparison, Measurement


@dataclass(frozen=True)
class Study:
    """A scenario, what the planner found, and, if the plan ran, what was measured (`comparison` goes with it)."""

    scenario: Scenario
    graph: TaskGraph
    cluster: Cluster
    search: SearchResult
    explanation: tuple[str, ...] = ()
    measurement: Measurement | None = None
    comparison: Comparison | None = None

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.search.best.plan

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the data, known only from a run."""
        if self.measurement is None or not self.measurement.epoch_s or self.scenario.job.total_steps is not None:
            return None
        return max(1, len(self.measurement.losses) // len(self.measurement.epoch_s))

    @property
    def step_expense(self) -> Expense:
        """USD, modelled joule and CO2 of one simulated step on the ranks in use; USD with the work that interruptions lose."""
        devices = [self.cluster.device(slot, len(self.plan.slots)) for slot in self.plan.slots]
        spent = expense(self.search.best.step_s, devices, self.cluster.grid_kg_per_joule)
        return replace(spent, usd=self.search.best.step_s * self.rent.usd_per_work_s) if self.rent.on_spot else spent

    @cached_property
    def rent(self) -> Rent:
        """How the nodes in use are rented."""
        return rent(self.cluster, self.plan.slots, self.scenario.job, self.scenario.search)
