"""What a search decides before it cuts stages: degrees, sharding, microbatches and schedule; and the space that a scenario allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec

RECOMPUTE = ("none", "selective", "full")
"""From fast and large to slow and small."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a stage is divided over devices beside its replicas, what is kept or computed again, and when replicas exchange.

    Fields are as in Plan.
    """

    tensor_parallel_degree: int = 1
    sequence_parallel: bool = False
    context_parallel_degree: int = 1
    expert_parallel_degree: int = 1
    zero_stage: int = 0
    recompute: str = "none"
    gradient_buckets: int = 1
    local_steps: int = 1
    gradient_delay: int = 0

    @property
    def group_width(self) -> int:
        """Devices that work in lockstep."""
        return self.tensor_parallel_degree * self.context_parallel_degree

    def plan_fields(self, stages: int) -> dict[str, Any]:
        """The fields of a Plan of so many stages."""
        return asdict(self) | {"recompute": () if self.recompute == "none" else (self.recompute,) * stages}

    @property
    def asynchronous(self) -> bool:
        """Whether replicas do without the exchange of a step's gradients in that step."""
        return self.local_steps > 1 or self.gradient_delay > 0

    @property
    def hides_exchange(self) -> bool:
        """Whether gradients leave while the backward pass still runs."""
        return (self.gradient_buckets > 1 and not self.asynchronous) or self.zero_stage == 3

    @property
    def alone(self) -> Sharding:
        """The same without what makes sense among replicas only."""
        return replace(self, zero_stage=0, gradient_buckets=1, local_steps=1, gradient_delay=0)

    @property
    def contradictory(self) -> bool:
        """Whether exchanges that are rarer or later than the steps meet each other, or what must exchange in every step."""
        every_step = self.zero_stage > 0 or self.context_parallel_degree * self.expert_parallel_degree > 1
        return (self.asynchronous and every_step) or (self.local_steps > 1 and self.gradient_delay > 0)

    def suits(self, replicas: int) -> bool:
        """Whether so many replicas make sense of it: ZeRO, buckets and experts divide what replicas hold or exchange."""
        exchanging = replicas * self.context_parallel_degree > 1
        among_replicas = self.zero_stage > 0 or self.gradient_buckets > 1 or self.asynchronous
        return replicas % self.expert_parallel_degree == 0 and (exchanging or not among_replicas)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The part of a plan that decides its partition."""

    data_parallel_degree: int
    pipeline_parallel_degree: int
    microbatch_count: int
    schedule: str
    stages_per_rank: int = 1
    sharding: Sharding = Sharding()

    @property
    def device_count(self) -> int:
        """Devices of all replicas."""
        return self.data_parallel_degree * self.pipeline_parallel_degree * self.sharding.group_width

    @property
    def stage_count(self) -> int:
        """Stages of one replica."""
        return self.pipeline_parallel_degree * self.stages_per_rank

    @property
    def split(self) -> tuple[int, int]:
        """Replicas and ranks of a pipeline."""
        return self.data_parallel_degree, self.pipeline_parallel_degree


@dataclass(frozen=True)
class Space:
    """Configurations that a scenario allows, on at most `maximum_ranks` devices and with stages that `cuts` tasks can end."""

    job: JobSpec
    search: SearchSpec
    maximum_ranks: int
    cuts: int

    @property
    def training(self) -> bool:
        """Whether there are backward passes."""
        return self.job.kind == "training"

    @property
    def recompute(self) -> list[str]:
        """Kinds of recompute that a stage may choose from, the fastest first."""
        return [kind for kind in RECOMPUTE if kind in self.search.recompute] if self.training else ["none"]

    def shardings(self) -> Iterator[Sharding]:
        """Every combination of the lists in [search]; what only training has is left out of inference."""
        search = self.search
        axes = (search.tensor_parallel_degrees, search.context_parallel_degrees, search.expert_parallel_degrees)
        kept: tuple[Sequence[Any], ...] = ((0,), ("none",), (1,), (1,), (0,))
        if self.training:
            kept = (search.zero_stages, self.recompute, search.gradient_buckets, search.local_steps, search.gradient_delays)
        for tensor, context, expert, *rest in product(*axes, *kept):
            sharding = Sharding(tensor, search.sequence_parallel and tensor > 1, context, expert, *rest)
            if tensor * context <= self.maximum_ranks and not sharding.contradictory:
                yield sharding

    def replicas(self, sharding: Sharding) -> list[int]:
        """Allowed data-parallel degrees: they divide the batch."""
        allowed, batch = self.search.data_parallel_degrees, self.job.global_batch_size
        most = self.maximum_ranks // sharding.group_width
        counts = [count for count in divisors(batch) if count <= most and sharding.suits(count)]
        return [count for count in counts if allowed is None or count in allowed]

    def pipelines(self, sharding: Sharding) -> list[int]:
        """Allowed pipeline-parallel degrees."""
        allowed, most = self.search.pipeline_parallel_degrees, min(self.cuts, self.maximum_ranks // sharding.group_width)
        return [count for count in range(1, most + 1) if allowed is None or count in allowed]

    def counts(self, replicas: int) -> list[int]:
        """Allowed microbatch counts of one replica: they divide its share of the batch."""
        return microbatch_counts(self.search, self.job.global_batch_size // replicas)

    def schedules(self, ranks: int, count: int) -> Iterator[tuple[str, int]]:
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
                if SCHEDULES[name].refuses(ranks, stages_per_rank, count) is None and ranks * stages_per_rank <= self.cuts:
                    yield name, stages_per_rank

    def configurations(self) -> Iterator[Configuration]:
        """All of them, one by one."""
        for sharding in self.shardings():
            groups = self.maximum_ranks // sharding.group_width
            for replicas in self.replicas(sharding):
                for ranks in self.pipelines(sharding):
                    if not self.search.minimum_ranks <= replicas * ranks * sharding.group_width or replicas * ranks > groups:
                        continue
                    for count in self.counts(replicas):
                        for schedule, stages_per_rank in self.schedules(ranks, count):
                            yield Configuration(replicas, ranks, count, schedule, stages_per_rank, sharding)


def microbatch_counts(search: SearchSpec, samples: int) -> list[int]:
    """Allowed numbers of microbatches of so many samples, ascending."""
    return [count for count in divisors(samples) if search.microbatch_counts is None or count in search.microbatch_counts]


def divisors(number: int) -> list[int]:
    """Whole numbers that divide another, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return small + [number // divisor for divisor in reversed(small) if divisor * divisor != number]
