"""Plans of one configuration: devices and placements, codecs, cuts, and unequal work for unequal replicas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.drafting.cutting import Cutter
from chinchilla_sim.planner.drafting.placement import placements, share_out
from chinchilla_sim.planner.drafting.scattered import scatter
from chinchilla_sim.planner.executable import FSDP_CODECS
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.slots import SlotChooser
from chinchilla_sim.planner.space.configuration import Configuration, microbatch_counts
from chinchilla_sim.scenario.search import SearchSpec

SCATTERED_COUNTS = 5
MORE_MICROBATCHES = 4
"""Stages in several pieces are tried with so many numbers of microbatches, up to so many times those of contiguous stages."""


class Drafter:
    """Makes plans of configurations; cuts keep what they know of runs of tasks."""

    def __init__(self, pricer: Pricer, search: SearchSpec, chooser: SlotChooser) -> None:
        self.pricer, self.search, self.graph, self.cluster, self.job = pricer, search, pricer.graph, pricer.cluster, pricer.job
        self.chooser = chooser
        self.training = pricer.job.kind == "training"
        self.cutter = Cutter(pricer, search.recompute)

    def plans(self, shape: Configuration) -> Iterator[Plan | None]:
        """All of them; None stands for devices, placement and codecs over which the tasks cannot be cut."""
        exchanging = shape.data_parallel_degree * shape.sharding.context_parallel_degree > 1
        gradient_codecs = self.search.gradient_codecs if exchanging and self.training else ("none",)
        if shape.sharding.zero_stage == 3:
            # No rank ever has whole gradients, of which a residual could be kept.
            played = FSDP_CODECS if self.search.executable else tuple(CODECS)
            gradient_codecs = tuple(codec for codec in gradient_codecs if codec in played and codec not in GRADIENTS_ONLY) or ("none",)
        activation_codecs = self.search.activation_codecs if shape.pipeline_parallel_degree > 1 else ("none",)
        schedule = SCHEDULES[shape.schedule]
        for slots, line in product(self.chooser.choices(shape.device_count), placements(*shape.split)):
            placement = tuple(line[schedule.rank_of_stage(stage, shape.pipeline_parallel_degree)] for stage in range(shape.stage_count))
            for activation_codec, gradient_codec in product(activation_codecs, gradient_codecs):
                found = self.cutter.cut(self._whole(shape, placement, slots, activation_codec, gradient_codec))
                if not found:
                    yield None
                for plan in map(self._with_order, found):
                    yield plan
                    yield from self._weighted(plan)

    def scattered(self, plan: Plan) -> Iterator[Plan]:
        """The plan's job with stages that are not contiguous, in about as many microbatches, where [search] allows it."""
        ranks = plan.pipeline_parallel_degree
        if self.search.stage_tasks == "contiguous" or not self.training or ranks == 1:
            return
        if plan.replica_microbatch_counts or plan.free_replicas:
            return
        tasks = tuple(name for stage in plan.stages for name in stage)
        whole = replace(plan, stages=(tasks,), placement=tuple(dict.fromkeys(plan.placement)))
        counts = microbatch_counts(self.search, plan.global_batch_size // plan.data_parallel_degree)
        near = [count for count in counts if count <= MORE_MICROBATCHES * plan.microbatch_count]
        yield from scatter(self.cutter, whole, near[-SCATTERED_COUNTS:])

    def _weighted(self, plan: Plan) -> Iterator[Plan]:
        """The plan with more microbatches for faster replicas, where replicas are on devices of different speed."""
        if plan.data_parallel_degree == 1 or SCHEDULES[plan.schedule].row is None:
            return
        if plan.zero_stage == 3 or plan.expert_parallel_degree > 1:
            return  # replicas meet in every pass
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
            refuses, shape = SCHEDULES[plan.schedule].refuses, (plan.pipeline_parallel_degree, plan.stages_per_rank)
            if set(counts) != {plan.microbatch_count} and not any(refuses(*shape, count) for count in set(counts)):
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
