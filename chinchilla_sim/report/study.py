"""Study: everything that a report shows about one scenario."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.money import Expense, expense
from chinchilla_sim.cost.rent import Rent, rent
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.traffic import Traffic, traffic_of
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.simulator.sensitivity import Explanation
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.compare import Comparison, Measurement


@dataclass(frozen=True)
class Study:
    """A scenario, what the planner found, and, if the plan ran, what was measured (`comparison` goes with it).

    `notes` are remarks on its inputs. A thorough one has `caused`, the simulated step with the causes of idle time, and `sensitivity`,
    the step with other inputs.
    """

    scenario: Scenario
    graph: TaskGraph
    cluster: Cluster
    search: SearchResult
    explanation: tuple[str, ...] = ()
    measurement: Measurement | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    caused: Timeline | None = None
    sensitivity: Explanation | None = None

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.search.best.plan

    @property
    def timeline(self) -> Timeline:
        """The simulated step, with the causes of idle time where these are known."""
        return self.caused or self.search.best.timeline

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the data, as the scenario states its samples, or as a run over whole epochs counted them."""
        job = self.scenario.job
        if job.epoch_samples is not None:
            return -(-job.epoch_samples // job.global_batch_size)
        if self.measurement is None or not self.measurement.epoch_s or job.total_steps is not None:
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

    @cached_property
    def traffic(self) -> Traffic:
        """Who sends how much to whom in a step of the chosen plan."""
        best = self.search.best
        return traffic_of(best.plan, best.pricing, best.timeline, Pricer(self.graph, self.cluster, self.scenario.job))
