"""Plan: all that is decided about a job. What follows from the decisions is a property."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

SCHEDULES = ("gpipe", "1f1b", "forward")
"""`forward` is the only schedule of inference."""


@dataclass(frozen=True)
class Plan:
    """Partition, placement, schedule and compression of one job.

    `stages[s]` are the names of the tasks of stage s, in topological order; `placement[s][d]` is the rank that
    runs stage s of replica d; `slots[r]` is the cluster's device slot of rank r. `activation_codecs[s]` packs
    what crosses from stage s to s + 1 (and its gradient on the way back), `gradient_codecs[s]` the gradients
    of stage s. `receives_in_flight` receives are posted ahead of their use on every rank.
    """

    stages: tuple[tuple[str, ...], ...]
    placement: tuple[tuple[int, ...], ...]
    slots: tuple[int, ...]
    global_batch_size: int
    microbatch_count: int
    schedule: str
    gradient_codecs: tuple[str, ...]
    activation_codecs: tuple[str, ...]
    receives_in_flight: int = 8

    @property
    def data_parallel_degree(self) -> int:
        """Replicas of every stage."""
        return len(self.placement[0])

    @property
    def pipeline_parallel_degree(self) -> int:
        """Stages."""
        return len(self.stages)

    @property
    def rank_count(self) -> int:
        """Processes of the run."""
        return len(self.slots)

    @property
    def microbatch_size(self) -> int:
        """Samples of one microbatch: `global_batch_size = microbatch_size * microbatch_count * data_parallel_degree`."""
        return self.global_batch_size // (self.microbatch_count * self.data_parallel_degree)

    @property
    def training(self) -> bool:
        """Whether the plan has backward passes."""
        return self.schedule != "forward"

    @cached_property
    def position(self) -> dict[int, tuple[int, int]]:
        """Rank -> (stage, replica)."""
        return {rank: (stage, replica) for stage, ranks in enumerate(self.placement) for replica, rank in enumerate(ranks)}

    def rank_of(self, stage: int, replica: int) -> int:
        """Rank that runs a stage of a replica."""
        return self.placement[stage][replica]

    def describe(self) -> str:
        """One line for people, such as `2 stages x 2 replicas, 4 microbatches of 8, 1f1b, activations int8`."""
        parts = [_split(self.pipeline_parallel_degree, self.data_parallel_degree)]
        if self.microbatch_count > 1:
            parts.append(f"{self.microbatch_count} microbatches of {self.microbatch_size}")
        if self.pipeline_parallel_degree > 1:
            parts += [self.schedule] if self.microbatch_count > 1 else []
            parts += _codec_words("activations", self.activation_codecs)
        if self.data_parallel_degree > 1 and self.training:
            parts += _codec_words("gradients", self.gradient_codecs)
        return ", ".join(parts)


def _split(stage_count: int, replica_count: int) -> str:
    stages, replicas = f"{stage_count} stages", f"{replica_count} replicas"
    if stage_count == 1:
        return "one rank" if replica_count == 1 else replicas
    return stages if replica_count == 1 else f"{stages} x {replicas}"


def _codec_words(what: str, codecs: tuple[str, ...]) -> list[str]:
    chosen = sorted(set(codecs) - {"none"})
    return [f"{what} {'/'.join(chosen)}"] if chosen else []


def mistakes_of(plan: Plan) -> list[tuple[str, str]]:
    """What contradicts itself in a plan, as (field, what): for plans written by hand."""
    found = []
    stages, replicas = len(plan.stages), {len(row) for row in plan.placement}
    ranks = sorted(rank for row in plan.placement for rank in row)
    if not plan.stages or not all(plan.stages):
        found.append(("stages", "every stage needs at least one task"))
    if len(plan.placement) != stages or len(replicas) != 1 or 0 in replicas:
        found.append(("placement", f"needs one row per stage ({stages}), each with the same number of replicas"))
    if ranks != list(range(len(ranks))) or len(ranks) != len(plan.slots):
        found.append(("placement", f"must use every rank from 0 to {len(plan.slots) - 1} once"))
    if len(set(plan.slots)) != len(plan.slots):
        found.append(("slots", "two ranks share a device slot"))
    if len(plan.gradient_codecs) != stages:
        found.append(("gradient_codecs", f"needs {stages} entries, one per stage"))
    if len(plan.activation_codecs) != max(0, stages - 1):
        found.append(("activation_codecs", f"needs {max(0, stages - 1)} entries, one per boundary"))
    if not found and plan.microbatch_size * plan.microbatch_count * plan.data_parallel_degree != plan.global_batch_size:
        product = plan.microbatch_count * plan.data_parallel_degree
        found.append(("microbatch_count", f"{plan.global_batch_size} samples do not divide into {product} microbatches"))
    return found
