"""Exhaustive search for the best plan, exact under the simulator.

The space: data-parallel degree x pipeline degree x microbatch count x schedule x sharding x placement x gradient
codec x activation codec; stages are cut by `balance_stages`. Every plan that fits into memory gets a lower bound
(`bound.py`). Within each split (data-parallel x pipeline degree) plans are simulated in the order of their
bounds until the next bound is above the best simulated step: the rest cannot win. The winner is therefore the
best of the whole stated space, not of a sample; other cuts than the balanced one are not in that space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.codec import payload_bytes
from chinchilla_sim.cost.money import expense
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.bound import step_lower_bound_s
from chinchilla_sim.planner.partition import allowed_cuts, balance_stages
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.prices import Pricing
from chinchilla_sim.planner.pricing import Pricer
from chinchilla_sim.planner.program import Program, lower, passes_of
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES, microbatches_in_flight
from chinchilla_sim.scenario.schema import JobSpec, SearchSpec
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_bytes

Simulate = Callable[[Program, Pricing, Cluster], Timeline]
Progress = Callable[[int, int], None]


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
    """The winner, the best plan of every other split, and one rank alone (None where it does not fit)."""

    best: Candidate
    runner_ups: tuple[Candidate, ...]
    one_rank: Candidate | None
    considered: int
    simulated: int
    infeasible: int


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a stage is divided over devices beside its replicas, and what is kept or computed again; fields as in Plan."""

    tensor_parallel_degree: int = 1
    sequence_parallel: bool = False
    context_parallel_degree: int = 1
    expert_parallel_degree: int = 1
    zero_stage: int = 0
    recompute: str = "none"
    gradient_buckets: int = 1

    @property
    def group_width(self) -> int:
        """Devices that work in lockstep."""
        return self.tensor_parallel_degree * self.context_parallel_degree

    def suits(self, replicas: int) -> bool:
        """Whether so many replicas make sense of it: ZeRO, buckets and experts divide what replicas hold or exchange."""
        exchanging = replicas * self.context_parallel_degree > 1
        return replicas % self.expert_parallel_degree == 0 and (exchanging or (self.zero_stage == 0 and self.gradient_buckets == 1))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The part of a plan that decides its partition."""

    data_parallel_degree: int
    pipeline_parallel_degree: int
    microbatch_count: int
    schedule: str
    stages_per_rank: int = 1
    sharding: Sharding = Sharding()

    @property
    def device_count(self) -> int:
        return self.data_parallel_degree * self.pipeline_parallel_degree * self.sharding.group_width

    @property
    def stage_count(self) -> int:
        return self.pipeline_parallel_degree * self.stages_per_rank

    @property
    def split(self) -> tuple[int, int]:
        return self.data_parallel_degree, self.pipeline_parallel_degree


def find_plans(
    graph: TaskGraph,
    cluster: Cluster,
    job: JobSpec,
    search: SearchSpec,
    simulate: Simulate,
    progress: Progress | None = None,
    profile: Profile | None = None,
) -> SearchResult:
    """The best plan of the stated space; raises NoFeasiblePlanError that says what stood in the way."""
    return _Search(Pricer(graph, cluster, job, profile), search, simulate, progress).run()


class _Search:
    def __init__(self, pricer: Pricer, search: SearchSpec, simulate: Simulate, progress: Progress | None) -> None:
        self.pricer, self.search, self.simulate, self.progress = pricer, search, simulate, progress
        graph, job = pricer.graph, pricer.job
        self.graph, self.cluster, self.job = graph, pricer.cluster, job
        self.training = job.kind == "training"
        self.cuts = allowed_cuts(graph, self.training)
        self.crossing_bytes = [
            sum(producer.output_bytes for producer in graph.live_after(graph.position[task.name])) for task in graph.compute_tasks
        ]
        self.considered = self.simulated = self.infeasible = 0
        self.shortfalls: list[tuple[float, str]] = []

    def run(self) -> SearchResult:
        """Best of every split, then the best of those."""
        self._check_objective()
        maximum = min(self.cluster.rank_count, self.search.maximum_ranks or self.cluster.rank_count)
        shapes = [shape for shape in self._shapes(maximum) if self._allowed(shape)]
        by_split: dict[tuple[int, int], list[_Shape]] = {}
        for shape in shapes:
            by_split.setdefault(shape.split, []).append(shape)
        winners = []
        for done, group in enumerate(by_split.values()):
            winners += self._best_of(group)
            if self.progress:
                self.progress(done + 1, len(by_split))
        if not winners:
            raise self._no_plan(shapes, maximum)
        ranked = sorted(winners, key=lambda candidate: (candidate.objective, len(candidate.plan.slots), candidate.plan.describe()))
        return SearchResult(
            best=ranked[0],
            runner_ups=tuple(ranked[1 : self.search.runner_ups + 1]),
            one_rank=self._one_rank(ranked),
            considered=self.considered,
            simulated=self.simulated,
            infeasible=self.infeasible,
        )

    def _check_objective(self) -> None:
        """Minimising what no device states would make every plan equal."""
        rates = {"cost": "usd_per_s", "energy": "power_watt"}
        field = rates.get(self.search.objective)
        if field and not any(getattr(self.cluster.device(slot), field) for slot in range(self.cluster.rank_count)):
            name = {"usd_per_s": "price", "power_watt": "power"}[field]
            what = f"{self.search.objective} is to be minimised, but no node states its {name}"
            raise ScenarioError([Mistake("search.objective", what, f'give the nodes a {name} such as "2 USD/h" or "300 W"')])

    def _shapes(self, maximum: int) -> Iterator[_Shape]:
        """Every split, schedule and microbatch count that divides the batch and uses at most `maximum` devices."""
        batch = self.job.global_batch_size
        for sharding in self._shardings():
            groups = maximum // sharding.group_width
            for replicas in range(1, groups + 1):
                if batch % replicas or not sharding.suits(replicas):
                    continue
                counts = _divisors(batch // replicas)
                for ranks in range(1, groups // replicas + 1):
                    for count in counts:
                        for schedule, stages_per_rank in self._schedules(ranks, count):
                            yield _Shape(replicas, ranks, count, schedule, stages_per_rank, sharding)

    def _shardings(self) -> Iterator[Sharding]:
        search = self.search
        axes = (search.tensor_parallel_degrees, search.context_parallel_degrees, search.expert_parallel_degrees)
        kept = (search.zero_stages, search.recompute, search.gradient_buckets) if self.training else ((0,), ("none",), (1,))
        for tensor, context, expert, zero_stage, recompute, buckets in product(*axes, *kept):
            yield Sharding(tensor, search.sequence_parallel and tensor > 1, context, expert, zero_stage, recompute, buckets)

    def _schedules(self, ranks: int, count: int) -> Iterator[tuple[str, int]]:
        """Allowed schedules with their stages per rank; one stage or microbatch needs only one of the plain ones."""
        if not self.training:
            yield "forward", 1
            return
        plain = [name for name in ("gpipe", "1f1b") if name in self.search.schedules]
        if ranks == 1 or count == 1:
            yield (plain or ["1f1b"])[-1], 1
            return
        for name in self.search.schedules:
            layout = SCHEDULES[name].layout
            for stages_per_rank in {"line": (1,), "v": (2,), "loop": self.search.stages_per_rank}[layout]:
                if SCHEDULES[name].refuses(ranks, stages_per_rank, count) is None:
                    yield name, stages_per_rank

    def _allowed(self, shape: _Shape) -> bool:
        search = self.search
        return (
            shape.device_count >= search.minimum_ranks
            and shape.stage_count <= sum(self.cuts)
            and (search.data_parallel_degrees is None or shape.data_parallel_degree in search.data_parallel_degrees)
            and (search.pipeline_parallel_degrees is None or shape.pipeline_parallel_degree in search.pipeline_parallel_degrees)
            and (search.microbatch_counts is None or shape.microbatch_count in search.microbatch_counts)
        )

    def _best_of(self, shapes: Sequence[_Shape]) -> list[Candidate]:
        """The best plan of one split: simulate by rising bound until the bound passes the best."""
        bounded: list[tuple[float, int, Plan, Pricing]] = []
        for shape in shapes:
            for plan in self._plans(shape):
                self.considered += 1
                pricing = self.pricer.price(plan)
                if self._fits(plan, pricing):
                    bound_s = step_lower_bound_s(plan, pricing, self.cluster)
                    bounded.append((self._objective(plan, bound_s), len(bounded), plan, pricing))
        best: Candidate | None = None
        for bound, _, plan, pricing in sorted(bounded, key=lambda row: row[:2]):
            if best and bound >= best.objective:
                break
            candidate = self._simulated(plan, pricing)
            if best is None or candidate.objective < best.objective:
                best = candidate
        return [best] if best else []

    def _simulated(self, plan: Plan, pricing: Pricing) -> Candidate:
        self.simulated += 1
        timeline = self.simulate(lower(plan), pricing, self.cluster)
        return Candidate(plan, pricing, timeline, self._objective(plan, timeline.step_s))

    def _objective(self, plan: Plan, step_s: float) -> float:
        if self.search.objective == "step_time":
            return step_s
        devices = [self.cluster.device(slot) for slot in plan.slots]
        spent = expense(step_s, devices)
        return spent.usd if self.search.objective == "cost" else spent.joule

    def _plans(self, shape: _Shape) -> Iterator[Plan]:
        """Placements and codecs of one shape."""
        slots = fastest_slots(self.cluster, shape.device_count)
        exchanging = shape.data_parallel_degree * shape.sharding.context_parallel_degree > 1
        gradient_codecs = self.search.gradient_codecs if exchanging and self.training else ("none",)
        activation_codecs = self.search.activation_codecs if shape.pipeline_parallel_degree > 1 else ("none",)
        schedule = SCHEDULES[shape.schedule]
        for line in placements(*shape.split):
            placement = tuple(line[schedule.rank_of_stage(stage, shape.pipeline_parallel_degree)] for stage in range(shape.stage_count))
            for activation_codec in activation_codecs:
                for gradient_codec in gradient_codecs:
                    plan = self._cut(shape, placement, slots, activation_codec, gradient_codec)
                    if plan is None:
                        self.considered += 1
                        self.infeasible += 1
                    else:
                        yield plan

    def _cut(
        self, shape: _Shape, placement: tuple[tuple[int, ...], ...], slots: tuple[int, ...], activation_codec: str, gradient_codec: str
    ) -> Plan | None:
        """The partition of a shape whose busiest stage or link is as fast as can be, or None where none fits into memory."""
        stages = shape.stage_count
        tasks = self.graph.compute_tasks
        whole = Plan(
            stages=(tuple(task.name for task in tasks),),
            placement=placement,
            slots=slots,
            global_batch_size=self.job.global_batch_size,
            microbatch_count=shape.microbatch_count,
            schedule=shape.schedule,
            gradient_codecs=(gradient_codec,) * stages,
            activation_codecs=(activation_codec,) * (stages - 1),
            **asdict(shape.sharding),
        )
        # One stage needs no dynamic programme: memory is checked with its exact price.
        sizes = [len(tasks)] if stages == 1 else self._balance(whole)
        if sizes is None:
            # Nothing fits: the balanced cut without a limit says how far the closest plan is off.
            sizes = self._balance(whole, limited=False)
        if sizes is None:
            return None
        names = iter(task.name for task in tasks)
        return self._with_order(replace(whole, stages=tuple(tuple(next(names) for _ in range(count)) for count in sizes)))

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

    def _balance(self, plan: Plan, limited: bool = True) -> list[int] | None:
        """Tasks per stage; weights are seconds per step of computation, gradient exchange and crossing tensors."""
        size, count, pricer = plan.microbatch_size, plan.microbatch_count, self.pricer.for_devices(plan)
        weights = []
        for stage, row in enumerate(plan.placement):
            device = self.pricer.device_of(plan, row[0])
            exchange_s = pricer.exchange_s_per_byte(plan, stage)
            weights.append(
                [
                    count * sum(pricer.task_s(task, size, device, len(plan.slots))[:2]) + exchange_s * pricer.graph.trained_bytes_of([task])
                    for task in pricer.graph.compute_tasks
                ]
            )
        limited = limited and plan.recompute == "none"
        fits = self._fit_rule(plan) if limited else lambda _position, _first, _end: True
        return balance_stages(weights, self._boundary_s(plan), self.cuts, fits)

    def _boundary_s(self, plan: Plan) -> list[float]:
        """Seconds per step that the tensors behind each task keep an idle link busy, one way."""
        lower_slot, upper_slot = plan.slots_of(plan.placement[0][0])[0], plan.slots_of(plan.placement[-1][0])[0]
        bandwidth = self.cluster.bandwidth_bytes_per_s(lower_slot, upper_slot)
        scale = self.pricer.scale(plan.microbatch_size)
        codec = plan.activation_codecs[0]
        value_bytes = self.pricer.value_bytes
        return [plan.microbatch_count * payload_bytes(codec, scale * crossing, value_bytes) / bandwidth for crossing in self.crossing_bytes]

    def _fit_rule(self, plan: Plan) -> Callable[[int, int, int], bool]:
        """Whether tasks j..i-1 fit on a pipeline position."""
        task_count, pricer = len(self.graph.compute_tasks), self.pricer.for_devices(plan)

        def fits(position: int, first: int, end: int) -> bool:
            limit = min(self.cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes for rank in plan.placement[position])
            in_flight = microbatches_in_flight(
                plan.schedule, position, plan.pipeline_parallel_degree, len(plan.placement), plan.microbatch_count
            )
            crossing = sum(self.crossing_bytes[behind - 1] for behind in (first, end) if 0 < behind < task_count)
            return pricer.stage_bytes(plan, position, first, end, in_flight, crossing / plan.group_width) <= limit

        return fits

    def _fits(self, plan: Plan, pricing: Pricing) -> bool:
        for replica in range(plan.data_parallel_degree):
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
        counts = _divisors(self.job.global_batch_size)
        shapes = [_Shape(1, 1, count, schedule) for count in counts for schedule, _ in self._schedules(1, count)]
        before = self.considered, self.infeasible, self.simulated
        found = self._best_of(shapes)
        self.considered, self.infeasible, self.simulated = before
        return found[0] if found else None

    def _no_plan(self, shapes: Sequence[_Shape], maximum: int) -> NoFeasiblePlanError:
        if not shapes:
            return NoFeasiblePlanError(
                "search",
                f"no split of {sum(self.cuts)} possible stages and a batch of {self.job.global_batch_size} "
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


def fastest_slots(cluster: Cluster, count: int) -> tuple[int, ...]:
    """The `count` fastest device slots, in the cluster's order."""
    ranked = sorted(range(cluster.rank_count), key=lambda slot: (-cluster.devices[slot].flop_per_s, slot))
    return tuple(sorted(ranked[:count]))


def placements(replicas: int, stages: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Ranks by [stage][replica]: stages of a replica side by side, and, where it differs, replicas of a stage side by side."""
    yield tuple(tuple(replica * stages + stage for replica in range(replicas)) for stage in range(stages))
    if replicas > 1 and stages > 1:
        yield tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(stages))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
