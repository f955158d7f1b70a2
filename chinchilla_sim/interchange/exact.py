"""The plan that Megatron-LM makes of its arguments: equal layers, and replicas or stages on neighbouring devices as it orders them."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.interchange.layers import layer_starts, stages_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.schema import Scenario

ONE_VALUE = (
    "data_parallel_degrees", "pipeline_parallel_degrees", "tensor_parallel_degrees", "context_parallel_degrees", "expert_parallel_degrees",
    "microbatch_counts", "zero_stages", "recompute", "schedules", "gradient_buckets", "gradient_codecs",
)  # fmt: skip


def exact_plan(scenario: Scenario, graph: TaskGraph, layer_counts: Sequence[int] = (), replicas_first: bool = True) -> Plan:
    """The one plan of a search that leaves one value everywhere, in stages of so many layers (equal where none are given).

    Raises ScenarioError where the search leaves a choice, or the model has no line of layers that could be cut.
    """
    search = scenario.search
    mistakes = [
        Mistake(f"search.{key}", "leaves a choice, and one plan is asked for", "give one value, or plan it with `chinchilla plan`")
        for key in ONE_VALUE
        if len(getattr(search, key) or ()) != 1
    ]
    if mistakes:
        raise ScenarioError(mistakes)
    (replicas,), (ranks,) = search.data_parallel_degrees or (), search.pipeline_parallel_degrees or ()
    (tensor,), (context,), (expert,) = search.tensor_parallel_degrees, search.context_parallel_degrees, search.expert_parallel_degrees
    (count,), (schedule,), (kind,) = search.microbatch_counts or (), search.schedules, search.recompute
    per_rank = search.stages_per_rank[0] if SCHEDULES[schedule].layout == "loop" and ranks > 1 else 1
    stages = _stages(graph, layer_counts, ranks * per_rank)
    plan = Plan(
        stages=stages,
        placement=placement(schedule, len(stages), ranks, replicas, replicas_first),
        slots=tuple(range(replicas * ranks * tensor * context)),
        global_batch_size=scenario.job.global_batch_size,
        microbatch_count=count,
        schedule=schedule if ranks > 1 else "1f1b",
        gradient_codecs=search.gradient_codecs * len(stages),
        activation_codecs=("none",) * (len(stages) - 1),
        gradient_buckets=search.gradient_buckets[0],
        zero_stage=search.zero_stages[0],
        recompute=() if kind == "none" else (kind,) * len(stages),
        tensor_parallel_degree=tensor,
        sequence_parallel=search.sequence_parallel and tensor > 1,
        context_parallel_degree=context,
        expert_parallel_degree=expert,
        clips_gradients=scenario.job.clip_gradient_norm is not None,
    )
    if found := mistakes_of(plan):
        raise ScenarioError([Mistake(f"plan.{where}", what) for where, what in found])
    return with_sharing(plan, graph)


def placement(schedule: str, stages: int, ranks: int, replicas: int, replicas_first: bool) -> tuple[tuple[int, ...], ...]:
    """Rank of stage s of replica d, as the schedule lays stages out; neighbours are replicas (Megatron's tp-dp-pp) or stages."""
    places = [SCHEDULES[schedule].rank_of_stage(stage, ranks) for stage in range(stages)]
    return tuple(
        tuple(place * replicas + replica if replicas_first else replica * ranks + place for replica in range(replicas)) for place in places
    )


def _stages(graph: TaskGraph, layer_counts: Sequence[int], stages: int) -> tuple[tuple[str, ...], ...]:
    layers = len(layer_starts(graph))
    if stages == 1:
        return (tuple(task.name for task in graph.compute_tasks),)
    counts = tuple(layer_counts) or (layers // stages,) * stages
    if sum(counts) != layers or len(counts) != stages:
        what = f"{layers} layers cannot be divided equally over {stages} stages" if layers else "the model has no line of layers"
        raise ScenarioError([Mistake("search.pipeline_parallel_degrees", what, "use a number of stages that divides the layers")])
    return stages_of(graph, counts)
