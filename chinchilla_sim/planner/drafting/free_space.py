"""Plans whose stages have replica counts of their own, as far as a scenario allows them (`search.stage_replicas = "free"`).

They run on as many devices as the scenario allows, and on a half, a quarter and so on of them. Of all plans with m microbatches on D
devices, W the forward and backward seconds of all tasks on the fastest device for them, none takes less than

    max(W,  m W / D)            one microbatch passes all stages; the busiest device does at least its share          least_s
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.drafting.placement import slot_choices
from chinchilla_sim.planner.drafting.stage_replicas import Stream, plans_with_replicas
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.space.configuration import Sharding, Space, divisors

MOST_DEVICES = 32
"""The exact programme tries every run of devices for every stage."""

FEWEST_DEVICES = 3


@dataclass(frozen=True)
class FreeSpace:
    """What the lists of [search] leave of such plans; raises ScenarioError where the devices are too many for the exact programme."""

    pricer: Pricer
    space: Space

    def __post_init__(self) -> None:
        if self.space.maximum_ranks > MOST_DEVICES:
            what = f'"free" is solved exactly for up to {MOST_DEVICES} ranks, not for {self.space.maximum_ranks}'
            cure = f'write maximum_ranks = {MOST_DEVICES}, or stage_replicas = "equal"'
            raise ScenarioError([Mistake("search.stage_replicas", what, cure)])

    def device_counts(self) -> list[int]:
        """All devices, half of them, a quarter, and so on."""
        counts, count = [], self.space.maximum_ranks
        while count >= max(FEWEST_DEVICES, self.space.search.minimum_ranks):
            counts.append(count)
            count //= 2
        return counts

    def microbatch_counts(self) -> list[int]:
        """Lengths of a stream: they divide the batch."""
        allowed = self.space.search.microbatch_counts
        return [count for count in divisors(self.space.job.global_batch_size) if count > 1 and (allowed is None or count in allowed)]

    def plans(self) -> Iterator[Plan]:
        """The best ones for every number of devices and stages, and all that [search] lists."""
        search, training = self.space.search, self.space.training
        schedules = [name for name in ("1f1b", "gpipe") if name in search.schedules] if training else ["forward"]
        codecs = product(search.activation_codecs, search.gradient_codecs if training else ("none",))
        kinds = list(product(self.microbatch_counts(), schedules, codecs, filter(_is_plain, self.space.shardings())))
        for count in self.device_counts():
            for slots in slot_choices(self.pricer.cluster, count):
                for microbatches, schedule, packed, sharding in kinds:
                    stream = Stream(microbatches, schedule, *packed, sharding, search.data_parallel_degrees)
                    yield from filter(self._is_new, plans_with_replicas(self.pricer, slots, stream))

    def _is_new(self, plan: Plan) -> bool:
        """Whether stages have replica counts of their own, and are as many as allowed."""
        allowed = self.space.search.pipeline_parallel_degrees
        return plan.free_replicas and (allowed is None or plan.stage_count in allowed)

    def least(self, objective_of: Callable[[float, Sequence[int]], float]) -> tuple[float, float]:
        """Seconds, and what is minimised, that none of these plans is below; infinite where there is none."""
        cluster = self.pricer.cluster
        found = [
            (seconds, min(objective_of(seconds, slots) for slots in slot_choices(cluster, count)))
            for count, microbatches in product(self.device_counts(), self.microbatch_counts())
            for seconds in [self.least_s(count, microbatches)]
        ]
        infinite = float("inf")
        return min((row[0] for row in found), default=infinite), min((row[1] for row in found), default=infinite)

    def least_s(self, device_count: int, microbatch_count: int) -> float:
        """Seconds that no plan of so many devices and microbatches is below."""
        cluster, size = self.pricer.cluster, self.space.job.global_batch_size // microbatch_count
        kinds = list(dict.fromkeys(cluster.device(slot, device_count) for slot in range(cluster.rank_count)))
        whole_s = 0.0
        for task in self.pricer.graph.compute_tasks:
            seconds = [self.pricer.task_s(task, size, device, device_count) for device in kinds]
            whole_s += min(forward_s + self.space.training * backward_s for forward_s, backward_s, _ in seconds)
        return max(whole_s, microbatch_count * whole_s / device_count)


def _is_plain(sharding: Sharding) -> bool:
    return sharding.group_width == sharding.expert_parallel_degree == 1 and sharding.zero_stage < 3 and not sharding.asynchronous
