"""The search for a plan under load: the same space, judged by how plans answer requests (`served_judge.py`).

The bound of the space on latency is the least bound on a step of one microbatch of one sample, over all splits. Of spaces too large to be
searched whole, configurations are tried by rising estimate, from the screen's estimate S of a step of m microbatches of b samples on p
ranks (stages taken as equal; x the M/D/1 wait of full batches at a replica's share of the arrivals):

    interval = S / (m + p - 1)        latency = p interval + x        those above their capacity last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.queueing import queue_wait_s
from chinchilla_sim.errors import NoFeasiblePlanError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.accuracy_rule import AccuracyRule
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.selection.judge import Progress, Simulate, Stop
from chinchilla_sim.planner.selection.search import PlanSearch
from chinchilla_sim.planner.selection.served_judge import ServedJudge
from chinchilla_sim.planner.serving import Serve, load_of
from chinchilla_sim.planner.space.configuration import Configuration, Space, divisors
from chinchilla_sim.planner.space.screen import Floats, Screen, screen
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec


def find_served_plans(
    graph: TaskGraph,
    cluster: Cluster,
    job: JobSpec,
    search: SearchSpec,
    simulate: Simulate,
    serve: Serve,
    progress: Progress | None = None,
    profile: Profile | None = None,
    stop: Stop | None = None,
    front: bool = False,
    accuracy: AccuracyRule | None = None,
) -> SearchResult:
    """The best plan that carries the arrivals of the job; raises NoFeasiblePlanError that says by how much the nearest one fails."""
    load = load_of(job)
    assert load is not None
    pricer, search = Pricer(graph, cluster, job, profile), accuracy.narrowed(search) if accuracy else search
    return _ServedSearch(pricer, search, ServedJudge(pricer, search, simulate, serve, load, progress, stop, accuracy)).run(front)


class _ServedSearch(PlanSearch):
    evaluations = 24  # estimates are rougher than those of a step

    def __init__(self, pricer: Pricer, search: SearchSpec, judge: ServedJudge) -> None:
        super().__init__(pricer, search, judge)
        self.served = judge
        self.overloaded = 0

    def run(self, front: bool = False) -> SearchResult:
        found = super().run(front)
        return replace(found, overloaded=self.overloaded)

    def _objective_per_s(self, screened: Screen) -> Floats:
        """What does not depend on the step is told per second of its bound, so that their product is right."""
        if self.search.objective == "step_time":
            return super()._objective_per_s(screened)
        bound_s = np.maximum(screened.lower_bound_s, np.finfo(np.float64).tiny)
        if self.served.by_latency:
            latency_per_s: Floats = self._least_latency_s() / bound_s
            return latency_per_s
        # Devices are in use while the requests of a global batch arrive.
        arriving_s = self.job.global_batch_size / self.served.load.arrivals_per_s
        per_s: Floats = super()._objective_per_s(screened) * arriving_s / bound_s
        return per_s

    def _estimates(self, screened: Screen, per_s: Floats) -> Floats:
        """Latency by configuration, roughly; of those that saturate the least overloaded come first."""
        if not self.served.by_latency:
            return super()._estimates(screened, per_s)
        p, m = screened.ranks.astype(np.float64), screened.microbatches.astype(np.float64)
        batches_per_s = self.served.load.arrivals_per_s * m / self.job.global_batch_size
        interval_s = screened.estimate_s / (m + p - 1)
        load = batches_per_s * interval_s
        waits_s = [queue_wait_s(*row) for row in zip(batches_per_s.tolist(), interval_s.tolist(), strict=True)]
        latency_s = p * interval_s + np.where(load < 1, np.array(waits_s), 0.0)
        # No number of seconds is above the largest plus one.
        largest_s = float(latency_s.max(initial=0.0))
        estimates_s: Floats = np.where(load < 1, latency_s, largest_s + load)
        return estimates_s

    def _least_latency_s(self) -> float:
        """Seconds within which no plan of the space answers a request."""
        least = np.inf
        for replicas in sorted({replicas for sharding in self.space.shardings() for replicas in self.space.replicas(sharding)}):
            job = self.job.model_copy(update={"global_batch_size": replicas})
            search = self.search.model_copy(update={"data_parallel_degrees": (replicas,), "microbatch_counts": (1,)})
            pricer = Pricer(self.pricer.graph, self.cluster, job, self.pricer.profile)
            bounds = screen(pricer, Space(job, search, self.space.maximum_ranks, self.space.cuts)).lower_bound_s
            least = min(least, float(bounds.min(initial=np.inf)))
        return least

    def _one_rank(self, ranked: Sequence[Candidate]) -> Candidate | None:
        """One rank alone; of any microbatches, since large ones may carry what small ones do not."""
        self.overloaded = len(self.served.refused)
        for candidate in ranked:
            if len(candidate.plan.slots) == 1:
                return candidate
        shapes = [Configuration(1, 1, count, "forward") for count in divisors(self.job.global_batch_size)]
        return self.judge.best_of((plan for shape in shapes for plan in self.drafter.plans(shape)), limited=False)

    def _no_plan(self, screened: int) -> NoFeasiblePlanError:
        return self.served.refusal() if self.served.refused else super()._no_plan(screened)

    def _another(self, search: SearchSpec) -> SearchResult:
        served = self.served
        judge = ServedJudge(self.pricer, search, served.simulate, served.serve, served.load, None, served.stop, served.accuracy)
        return _ServedSearch(self.pricer, search, judge).run()
