"""Plan: all that is decided about a job. What follows from the decisions is a property."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from chinchilla_sim.planner.schedules.registry import SCHEDULES

CUSTOM = "custom"
SCHEDULE_NAMES = (*SCHEDULES, CUSTOM)
"""`forward` is the only schedule of inference; `custom` plays the rows of `order`."""


LISTED_REPLICAS = 8


@dataclass(frozen=True)
class Plan:
    """Partition, placement, schedule, sharding and compression of one job.

    `stages[s]` are the names of the tasks of stage s, in topological order; `placement[s][d]` is the rank that
    runs stage s of replica d, and a rank may run several stages. Rows of different length give stages replica counts of
    their own: then one stream of `microbatch_count` microbatches is dealt out at every stage, microbatch j of stage s to
    the rank `placement[s][j % len(placement[s])]`. `slots` are the cluster's device slots: with
    tensor or context parallelism a rank stands for `group_width` neighbouring slots that work in lockstep.
    `activation_codecs[s]` packs what crosses from stage s to s + 1 (and its gradient on the way back),
    `gradient_codecs[s]` the gradients of stage s, which are exchanged in `gradient_buckets` buckets. `recompute[s]` is what
    stage s computes again in its backward pass (none, selective or full; empty: none anywhere).
    `replica_microbatch_counts` gives replicas unequal work. `order` are the passes of each pipeline position in
    PyTorch's notation where no formula draws them (custom and automatic schedules). `receives_in_flight`
    receives are posted ahead of their use on every rank. `collective_algorithm` is auto, ring,
    halving-doubling, tree or hierarchical; rings go from neighbour to neighbour (`ring_order` near) or as placed.
    `shared_stages` are the sets of stages that train the same weights (`pricing/sharing.py`).
    `clips_gradients` says that updates wait for the norm of all gradients.
    `activation_priority` is the weight of messages between stages on links that they share with exchanges (None: the network's own).
    With `local_steps` H above 1 replicas take H optimizer steps of their own, then exchange how far their weights have moved (local SGD,
    DiLoCo). With a `gradient_delay` of 1 gradients of a step are exchanged while the next one computes, and applied at its end.
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
    replica_microbatch_counts: tuple[int, ...] = ()
    order: tuple[str, ...] = ()
    gradient_buckets: int = 1
    collective_algorithm: str = "auto"
    ring_order: str = "near"
    zero_stage: int = 0
    recompute: tuple[str, ...] = ()
    activation_priority: float | None = None
    tensor_parallel_degree: int = 1
    sequence_parallel: bool = False
    context_parallel_degree: int = 1
    expert_parallel_degree: int = 1
    shared_stages: tuple[tuple[int, ...], ...] = ()
    clips_gradients: bool = False
    local_steps: int = 1
    gradient_delay: int = 0

    @cached_property
    def free_replicas(self) -> bool:
        """Whether stages have replica counts of their own."""
        return len(set(map(len, self.placement))) > 1

    @property
    def data_parallel_degree(self) -> int:
        """Whole pipelines side by side; one stream through stages with replica counts of their own is one pipeline."""
        return 1 if self.free_replicas else len(self.placement[0])

    @property
    def stage_count(self) -> int:
        """Stages of the model."""
        return len(self.stages)

    @cached_property
    def pipeline_parallel_degree(self) -> int:
        """Ranks that a microbatch passes."""
        return len({row[0] for row in self.placement})

    @property
    def stages_per_rank(self) -> int:
        """Stages on each rank of a pipeline."""
        return self.stage_count // self.pipeline_parallel_degree

    @property
    def rank_count(self) -> int:
        """Rows of the program: processes of the run, or groups of them that work in lockstep."""
        return len(self.slots) // self.group_width

    @property
    def group_width(self) -> int:
        """Devices that one rank stands for."""
        return self.tensor_parallel_degree * self.context_parallel_degree

    @property
    def exchange_degree(self) -> int:
        """The largest of all stages."""
        return max(map(len, self.placement)) * self.context_parallel_degree

    def exchange_degree_of(self, stage: int) -> int:
        """Devices that hold a stage's weights and add up their gradients: its replicas, and the parts of a context."""
        return len(self.placement[stage]) * self.context_parallel_degree

    def slots_of(self, rank: int) -> tuple[int, ...]:
        """Device slots of a rank."""
        return self.slots[rank * self.group_width : (rank + 1) * self.group_width]

    @property
    def microbatch_size(self) -> int:
        """Samples of one microbatch: `global_batch_size = microbatch_size * microbatch_count * data_parallel_degree`."""
        return self.global_batch_size // (sum(self.replica_microbatch_counts) or self.microbatch_count * self.data_parallel_degree)

    def microbatches_of(self, replica: int) -> int:
        """Microbatches of one replica."""
        return self.replica_microbatch_counts[replica] if self.replica_microbatch_counts else self.microbatch_count

    @property
    def training(self) -> bool:
        """Whether the plan has backward passes."""
        return self.schedule != "forward"

    @cached_property
    def splits_backward(self) -> bool:
        """Whether I and W take the place of B (custom rows: in any of them)."""
        if self.schedule == CUSTOM:
            return any("W" in row for row in self.order)
        return SCHEDULES[self.schedule].splits_backward

    @cached_property
    def position(self) -> dict[int, tuple[tuple[int, ...], int]]:
        """Rank -> (its stages in ascending order, its place in their rows of `placement`: the replica)."""
        stages: dict[int, list[int]] = {}
        replicas: dict[int, int] = {}
        for stage, ranks in enumerate(self.placement):
            for replica, rank in enumerate(ranks):
                stages.setdefault(rank, []).append(stage)
                replicas[rank] = replica
        return {rank: (tuple(stages[rank]), replicas[rank]) for rank in sorted(stages)}

    def lane_of(self, replica: int, microbatch: int) -> int:
        """The way of a microbatch through the stages: its replica's, or its own where one stream is dealt out at every stage."""
        return microbatch if self.free_replicas else replica

    def rank_of(self, stage: int, lane: int) -> int:
        """Rank that runs a stage of a lane (a replica, unless stages have replica counts of their own)."""
        row = self.placement[stage]
        return row[lane % len(row)]

    def share_of(self, stage: int, place: int = 0) -> int:
        """Microbatches that the rank at a place in a stage's row runs; the first has the most of a stream."""
        if not self.free_replicas:
            return self.microbatches_of(place)
        return len(range(place, self.microbatch_count, len(self.placement[stage])))

    def pipeline(self, replica: int) -> tuple[int, ...]:
        """Ranks of one replica in the order in which the first microbatch meets them; with a stream all ranks, stage by stage."""
        rows = self.placement if self.free_replicas else ((row[replica],) for row in self.placement)
        return tuple(dict.fromkeys(rank for row in rows for rank in row))

    def sharing_ranks(self, number: int, replica: int = 0) -> tuple[int, ...]:
        """Ranks of a replica (with a stream all ranks) that hold `shared_stages[number]`'s weights; a single one exchanges nothing."""
        rows = [self.placement[stage] for stage in self.shared_stages[number]]
        return tuple(dict.fromkeys(rank for row in rows for rank in (row if self.free_replicas else row[replica : replica + 1])))

    def norm_ranks(self, replica: int = 0) -> tuple[int, ...]:
        """Ranks that hold all gradients together: a replica's where replicas hold the same, else all."""
        return tuple(range(self.rank_count)) if self.zero_stage or self.free_replicas else self.pipeline(replica)

    @property
    def asynchronous(self) -> bool:
        """Whether replicas do without the exchange of a step's gradients in that step."""
        return self.local_steps > 1 or self.gradient_delay > 0

    @property
    def buckets_leave_early(self) -> bool:
        """Whether buckets of gradients leave while the last backward pass still runs."""
        return self.gradient_buckets > 1 and not self.asynchronous

    def exchanges_in(self, step: int) -> bool:
        """Whether replicas exchange in a step that counts from 0."""
        return (step + 1) % self.local_steps == 0

    def recompute_of(self, stage: int) -> str:
        """What a stage computes again: none, selective or full."""
        return self.recompute[stage] if self.recompute else "none"

    def crosses(self, boundary: int, lane: int = 0) -> bool:
        """Whether what leaves stage `boundary` for the next one changes ranks."""
        return self.rank_of(boundary, lane) != self.rank_of(boundary + 1, lane)

    def describe(self) -> str:
        """One line for people, such as `2 stages x 2 replicas, 4 microbatches of 8, 1f1b, activations int8`."""
        if self.free_replicas:
            parts = [f"{self.stage_count} stages of {_count_words(tuple(map(len, self.placement)))} replicas"]
        else:
            parts = [_split(self.stage_count, self.pipeline_parallel_degree, self.data_parallel_degree)]
        parts += self._group_words()
        if self.replica_microbatch_counts:
            parts.append(f"{_count_words(self.replica_microbatch_counts)} microbatches of {self.microbatch_size}")
        elif self.microbatch_count > 1:
            parts.append(f"{self.microbatch_count} microbatches of {self.microbatch_size}")
        if self.pipeline_parallel_degree > 1:
            parts += [self.schedule] if self.microbatch_count > 1 else []
            parts += _codec_words("activations", self.activation_codecs)
        if self.exchange_degree > 1 and self.training:
            parts += _codec_words("gradients", self.gradient_codecs)
            parts += [f"{self.gradient_buckets} buckets"] if self.gradient_buckets > 1 else []
            parts += [f"ZeRO {self.zero_stage}"] if self.zero_stage else []
            parts += [f"{self.local_steps} local steps"] if self.local_steps > 1 else []
            parts += ["gradients one step late"] if self.gradient_delay else []
        parts += _recompute_words(self.recompute)
        parts += [f"activations first ({self.activation_priority:g} : 1)"] if self.activation_priority is not None else []
        return ", ".join(parts)

    def _group_words(self) -> list[str]:
        words = []
        if self.tensor_parallel_degree > 1:
            words.append(f"tensor parallel {self.tensor_parallel_degree}{' with sequence parallel' if self.sequence_parallel else ''}")
        if self.context_parallel_degree > 1:
            words.append(f"context parallel {self.context_parallel_degree}")
        if self.expert_parallel_degree > 1:
            words.append(f"expert parallel {self.expert_parallel_degree}")
        return words


def _split(stage_count: int, rank_count: int, replica_count: int) -> str:
    stages, replicas = f"{stage_count} stages", f"{replica_count} replicas"
    if stage_count == 1:
        return "one rank" if replica_count == 1 else replicas
    stages += "" if stage_count == rank_count else f" on {rank_count} rank{'s' if rank_count > 1 else ''}"
    return stages if replica_count == 1 else f"{stages} x {replicas}"


def _count_words(counts: tuple[int, ...]) -> str:
    return "/".join(map(str, counts)) if len(counts) <= LISTED_REPLICAS else f"{min(counts)} to {max(counts)}"


def _recompute_words(kinds: tuple[str, ...]) -> list[str]:
    counts = {kind: kinds.count(kind) for kind in ("selective", "full") if kind in kinds}
    if len(counts) == 1 and "none" not in kinds:
        return [f"{kind} recompute" for kind in counts]
    return [f"{kind} recompute in {count} of {len(kinds)} stages" for kind, count in counts.items()]


def _codec_words(what: str, codecs: tuple[str, ...]) -> list[str]:
    chosen = sorted(set(codecs) - {"none"})
    return [f"{what} {'/'.join(chosen)}"] if chosen else []
