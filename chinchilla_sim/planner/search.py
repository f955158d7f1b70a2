"""The best plan of a space: screened as a whole, cut and priced where it can win, judged by the simulator.

The space: data-parallel degree x pipeline degree x microbatch count x schedule x sharding x placement x gradient
codec x activation codec. `screen.py` bounds and ranks all configurations at once; stages are cut by `cutting.py`; every plan that
fits into memory gets a bound of its own (`bound.py`), and what cannot beat the best simulated plan is not simulated.

Spaces of up to EXHAUSTIVE configurations are searched whole, split by split, so that the best of every split is known. Larger ones
are searched in the order of their estimates until no bound is below the best, or EVALUATIONS configurations have been priced. Both
budgets count, so that the same scenario gives the same plan; `until` (seconds of the clock) only cuts off, and the result says so.
The least bound of the space says how far from the best the plan can be at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from time import monotonic

import numpy as np

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.cost.money import expense
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.bound import step_lower_bound_s
from chinchilla_sim.planner.configuration import Configuration, Space, divisors
from chinchilla_sim.planner.cutting import Cutter
from chinchilla_sim.planner.executable import search_mistakes, unplayable
from chinchilla_sim.planner.placement import distinct_replicas, placements, share_out, slot_choices
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.prices import Pricing
from chinchilla_sim.planner.pricing import Pricer
from chinchilla_sim.planner.program import Program, folds, lower, passes_of
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.screen import Floats, Screen, screen
from chinchilla_sim.scenario.schema import JobSpec, SearchSpec
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_bytes

Simulate = Callable[[Program, Pricing, Cluster], Timeline]
Progress = Callable[[int, int], None]

EXHAUSTIVE = 400
EVALUATIONS = 8
MOST_EVALUATIONS = 400
"""So many configurations are priced where none of the first EVALUATIONS fits into memory."""


@dataclass(frozen=True)
class Candidate:
    """A plan with its simulated step; `objective` is what the search minimises (seconds, USD or joule per step)."""

    plan: Plan
    pricing: Pricing
    timeline: Timeline
    objective: float

    @property
    def step_s(self) -> float:
        """Simulated seconds of one step."""
        return self.timeline.step_s


@dataclass(frozen=True)
class SearchResult:
    """The winner, the best plan of other splits, and one rank alone (None where it does not fit).

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

    @property
    def gap(self) -> float | None:
        """How much more of what is minimised than any plan of the space needs at least, as a share of that bound."""
        return self.best.objective / self.lower_bound - 1 if self.lower_bound > 0 else None


def find_plans(
    graph: TaskGraph,
    cluster: Cluster,
    job: JobSpec,
    search: SearchSpec,
    simulate: Simulate,
    progress: Progress | None = None,
    profile: Profile | None = None,
    until: float | None = None,
) -> SearchResult:
    """The best plan of the stated space; raises NoFeasiblePlanError that says what stood in the way.

    `until` is a time of the monotonic clock at which the search ends with the best plan so far.
    """
    return _Search(Pricer(graph, cluster, job, profile), search, simulate, progress, until).run()


class _Search:
    space: Space

    def __init__(
        self, pricer: Pricer, search: SearchSpec, simulate: Simulate, progress: Progress | None, until: float | None = None
    ) -> None:
        self.pricer, self.search, self.simulate, self.progress, self.until = pricer, search, simulate, progress, until
        self.truncated = False
        graph, job = pricer.graph, pricer.job
        self.graph, self.cluster, self.job = graph, pricer.cluster, job
        self.training = job.kind == "training"
        self.cutter = Cutter(pricer, search.recompute, shared=not search.executable)
        self.considered = self.simulated = self.infeasible = 0
        self.shortfalls: list[tuple[float, str]] = []

    def run(self) -> SearchResult:
        """Best of every split, then the best of those."""
        self._check_search()
        maximum = min(self.cluster.rank_count, self.search.maximum_ranks or self.cluster.rank_count)
        self.space = Space(self.job, self.search, maximum, sum(self.cutter.can_end))
        screened = screen(self.pricer, self.space)
        exhaustive = screened.screened <= EXHAUSTIVE
        winners = self._every_split(list(self.space.configurations())) if exhaustive else self._likely_first(screened)
        if not winners:
            raise self._no_plan(screened.screened, maximum)
        ranked = sorted(winners, key=lambda candidate: (candidate.objective, len(candidate.plan.slots), candidate.plan.describe()))
        bounds = screened.lower_bound_s * self._objective_per_s(screened)
        return SearchResult(
            best=ranked[0],
            runner_ups=tuple(ranked[1 : self.search.runner_ups + 1]),
            one_rank=self._one_rank(ranked),
            considered=self.considered,
            simulated=self.simulated,
            infeasible=self.infeasible,
            screened=screened.screened,
            lower_bound_s=min(float(screened.lower_bound_s.min(initial=np.inf)), ranked[0].step_s),
            lower_bound=min(float(bounds.min(initial=np.inf)), ranked[0].objective),
            truncated=self.truncated,
        )

    def _every_split(self, configurations: Sequence[Configuration]) -> list[Candidate]:
        by_split: dict[tuple[int, int], list[Configuration]] = {}
        for configuration in configurations:
            if configuration.sharding.recompute != self.search.recompute[0] and self.training:
                continue  # the cutter chooses what each stage computes again
            by_split.setdefault(configuration.split, []).append(configuration)
        winners: list[Candidate] = []
        for done, group in enumerate(by_split.values()):
            winners += self._best_of(group)
            if self._reports(done + 1, len(by_split)) and winners:
                break
        return winners

    def _likely_first(self, screened: Screen) -> list[Candidate]:
        """Best of every split that was looked at, by rising estimate of the objective."""
        per_s = self._objective_per_s(screened)
        bounds, estimates = screened.lower_bound_s * per_s, screened.estimate_s * per_s
        best: dict[tuple[int, int], Candidate] = {}
        least = np.inf
        priced = 0
        seen: set[Configuration] = set()
        for row in np.argsort(estimates, kind="stable"):
            if bounds[row] >= least:
                continue
            configuration = screened.configuration(int(row))
            # The cutter chooses what each stage computes again: rows that differ in it rank, and are one.
            plain = replace(configuration, sharding=replace(configuration.sharding, recompute="none"))
            if plain in seen:
                continue
            seen.add(plain)
            for candidate in self._best_of([configuration], least):
                least = min(least, candidate.objective)
                rival = best.get(configuration.split)
                if rival is None or candidate.objective < rival.objective:
                    best[configuration.split] = candidate
            priced += 1
            if self._reports(min(priced, EVALUATIONS), EVALUATIONS) and best:
                break
            if priced >= EVALUATIONS and (best or priced >= MOST_EVALUATIONS):
                break
        return list(best.values())

    def _objective_per_s(self, screened: Screen) -> Floats:
        """What is minimised, per second of a step, by configuration: on the cheapest devices that it may get."""
        counts, index = np.unique(screened.device_counts(), return_inverse=True)
        rates = [min(self._objective_of(1.0, slots) for slots in slot_choices(self.cluster, int(count))) for count in counts]
        per_s: Floats = np.array(rates, dtype=np.float64)[index]
        return per_s

    def _reports(self, done: int, total: int) -> bool:
        """Tell the progress; whether the time is over."""
        if self.progress:
            self.progress(done, total)
        self.truncated |= self.until is not None and monotonic() > self.until
        return self.truncated

    def _check_search(self) -> None:
        """Minimising what no device states would make every plan equal; and what the runtime cannot play must be asked for."""
        mistakes = search_mistakes(self.search)
        rates = {"cost": "usd_per_s", "energy": "power_watt"}
        field = rates.get(self.search.objective)
        if field and not any(getattr(self.cluster.device(slot), field) for slot in range(self.cluster.rank_count)):
            name = {"usd_per_s": "price", "power_watt": "power"}[field]
            what = f"{self.search.objective} is to be minimised, but no node states its {name}"
            mistakes.append(Mistake("search.objective", what, f'give the nodes a {name} such as "2 USD/h" or "300 W"'))
        if mistakes:
            raise ScenarioError(mistakes)

    def _best_of(self, shapes: Sequence[Configuration], below: float = np.inf) -> list[Candidate]:
        """The best plan of one split, if it is below a limit: simulate by rising bound until the bound passes the best."""
        bounded: list[tuple[float, int, Plan, Pricing]] = []
        for shape in shapes:
            for plan in self._plans(shape):
                assert not (self.search.executable and unplayable(plan)), unplayable(plan)
                self.considered += 1
                pricing = self.pricer.price(plan)
                if self._fits(plan, pricing):
                    bound_s = step_lower_bound_s(plan, pricing, self.cluster)
                    bounded.append((self._objective(plan, bound_s), len(bounded), plan, pricing))
        best: Candidate | None = None
        for bound, _, plan, pricing in sorted(bounded, key=lambda row: row[:2]):
            if bound >= (best.objective if best else below):
                break
            candidate = self._simulated(plan, pricing)
            if best is None or candidate.objective < best.objective:
                best = candidate
        return [best] if best else []

    def _simulated(self, plan: Plan, pricing: Pricing) -> Candidate:
        self.simulated += 1
        timeline = self.simulate(lower(plan, folds(plan, pricing)), pricing, self.cluster)
        return Candidate(plan, pricing, timeline, self._objective(plan, timeline.step_s))

    def _objective(self, plan: Plan, step_s: float) -> float:
        return self._objective_of(step_s, plan.slots)

    def _objective_of(self, step_s: float, slots: Sequence[int]) -> float:
        if self.search.objective == "step_time":
            return step_s
        devices = [self.cluster.device(slot) for slot in slots]
        spent = expense(step_s, devices)
        return spent.usd if self.search.objective == "cost" else spent.joule

    def _plans(self, shape: Configuration) -> Iterator[Plan]:
        """Placements and codecs of one shape."""
        exchanging = shape.data_parallel_degree * shape.sharding.context_parallel_degree > 1
        gradient_codecs = self.search.gradient_codecs if exchanging and self.training else ("none",)
        activation_codecs = self.search.activation_codecs if shape.pipeline_parallel_degree > 1 else ("none",)
        schedule = SCHEDULES[shape.schedule]
        for slots, line in product(slot_choices(self.cluster, shape.device_count), placements(*shape.split)):
            placement = tuple(line[schedule.rank_of_stage(stage, shape.pipeline_parallel_degree)] for stage in range(shape.stage_count))
            for activation_codec in activation_codecs:
                for gradient_codec in gradient_codecs:
                    found = self.cutter.cut(self._whole(shape, placement, slots, activation_codec, gradient_codec))
                    if not found:
                        self.considered += 1
                        self.infeasible += 1
                    for plan in map(self._with_order, found):
                        yield plan
                        yield from self._weighted(plan)

    def _weighted(self, plan: Plan) -> Iterator[Plan]:
        """The plan with more microbatches for faster replicas, where replicas are on devices of different speed."""
        if self.search.executable or plan.data_parallel_degree == 1 or SCHEDULES[plan.schedule].row is None:
            return
        pricer, tasks = self.pricer.for_devices(plan), self.pricer.for_devices(plan).graph.compute_tasks
        seconds: dict[Device, float] = {}
        slowest_s = []
        for replica in range(plan.data_parallel_degree):
            devices = {self.pricer.device_of(plan, rank) for rank in plan.pipeline(replica)}
            for device in devices - seconds.keys():
                seconds[device] = sum(sum(pricer.task_s(task, plan.microbatch_size, device, len(plan.slots))[:2]) for task in tasks)
            slowest_s.append(max(seconds[device] for device in devices))
        if len(set(slowest_s)) > 1:
            counts = share_out(plan.microbatch_count * plan.data_parallel_degree, slowest_s)
            if set(counts) != {plan.microbatch_count}:
                yield replace(plan, replica_microbatch_counts=tuple(counts))

    def _whole(
        self,
        shape: Configuration,
        placement: tuple[tuple[int, ...], ...],
        slots: tuple[int, ...],
        activation_codec: str,
        gradient_codec: str,
    ) -> Plan:
        """A shape with all tasks in one stage, as the cutter takes it."""
        stages = shape.stage_count
        return Plan(
            stages=(tuple(task.name for task in self.graph.compute_tasks),),
            placement=placement,
            slots=slots,
            global_batch_size=self.job.global_batch_size,
            microbatch_count=shape.microbatch_count,
            schedule=shape.schedule,
            gradient_codecs=(gradient_codec,) * stages,
            activation_codecs=(activation_codec,) * (stages - 1),
            **shape.sharding.plan_fields(stages),
        )

    def _with_order(self, plan: Plan) -> Plan:
        """Rows for a schedule that depends on the seconds of its passes."""
        if SCHEDULES[plan.schedule].row:
            return plan
        drawn = replace(plan, schedule="zb-h1")
        pricing = self.pricer.price(drawn)
        prices = [row[0] for row in pricing.stages]
        seconds = [PassSeconds(price.compute_s(Op.F), price.compute_s(Op.I), price.compute_s(Op.W, first=False)) for price in prices]
        links = [self.cluster.idle_link(plan.slots_of(a)[0], plan.slots_of(b)[0]) for a, b in pairwise(plan.pipeline(0))]
        transfer_s = max(link.idle_transfer_s(size) for link, size in zip(links, pricing.boundary_bytes, strict=True))
        kept = max(price.kept_bytes / price.saved_bytes if price.saved_bytes else 1.0 for price in prices)
        limit = len(prices) * {"zb-1p": 1, "zb-2p": 2}[plan.schedule]
        rows = find_rows(seconds, transfer_s, plan.microbatch_count, limit, kept)
        return replace(plan, order=tuple(" ".join(map(str, row)) for row in rows))

    def _fits(self, plan: Plan, pricing: Pricing) -> bool:
        for replica in distinct_replicas(plan, pricing, self.cluster):
            for rank, passes in zip(plan.pipeline(replica), passes_of(plan, replica), strict=True):
                peak_bytes = pricing.peak_bytes(plan, rank, passes)
                limit = self.cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes
                if peak_bytes > limit:
                    self.infeasible += 1
                    self.shortfalls.append((peak_bytes - limit, _shortfall(peak_bytes, limit, plan, self.cluster, plan.slots_of(rank)[0])))
                    return False
        return True

    def _one_rank(self, ranked: Sequence[Candidate]) -> Candidate | None:
        """One rank alone, also where the scenario asks for more."""
        for candidate in ranked:
            if len(candidate.plan.slots) == 1:
                return candidate
        counts = divisors(self.job.global_batch_size)
        shapes = [Configuration(1, 1, count, schedule) for count in counts for schedule, _ in self.space.schedules(1, count)]
        before = self.considered, self.infeasible, self.simulated
        found = self._best_of(shapes)
        self.considered, self.infeasible, self.simulated = before
        return found[0] if found else None

    def _no_plan(self, screened: int, maximum: int) -> NoFeasiblePlanError:
        if not screened:
            return NoFeasiblePlanError(
                "search",
                f"no split of {sum(self.cutter.can_end)} possible stages and a batch of {self.job.global_batch_size} "
                f"over {self.search.minimum_ranks} to {maximum} ranks is allowed",
                "change global_batch_size, minimum_ranks, or the degrees and microbatch counts that [search] lists",
            )
        shortfall = min(self.shortfalls)[1] if self.shortfalls else "no partition exists"
        cure = "use more nodes or more memory per device, a smaller global_batch_size, or an optimizer with less state (sgd)"
        return NoFeasiblePlanError("device memory", shortfall, cure)


def _shortfall(needed: float, limit: float, plan: Plan, cluster: Cluster, slot: int) -> str:
    return (
        f"the closest plan ({plan.describe()}) needs {format_bytes(needed)} on {cluster.slots[slot]}, "
        f"which has {format_bytes(limit)}: {format_bytes(needed - limit)} too little"
    )
