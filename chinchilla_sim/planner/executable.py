"""What the runtime can play today: one registry for the search, which keeps to it unless told otherwise, and for `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chinchilla_sim.errors import Mistake
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec

WIRE_CODECS = ("none", "fp16", "bf16", "int8")

PLAYED: Mapping[str, tuple[object, ...]] = {
    "schedules": ("gpipe", "1f1b"),
    "tensor_parallel_degrees": (1,),
    "context_parallel_degrees": (1,),
    "expert_parallel_degrees": (1,),
    "zero_stages": (0,),
    "recompute": ("none",),
    "gradient_buckets": (1,),
    "gradient_codecs": WIRE_CODECS,
    "activation_codecs": WIRE_CODECS,
    "stage_tasks": ("contiguous",),
    "stage_replicas": ("equal",),
    "activation_priorities": (),
    "variants": (),
}
"""Keys of [search] and those of their values that the runtime plays."""

_ASKS: Mapping[str, Callable[[Plan], bool]] = {
    "several stages per rank": lambda plan: plan.stage_count > plan.pipeline_parallel_degree,
    "split backward passes": lambda plan: plan.training and plan.splits_backward,
    "custom rows": lambda plan: plan.schedule == CUSTOM,
    "stages with replica counts of their own": lambda plan: plan.free_replicas,
    "unequal microbatch counts": lambda plan: bool(plan.replica_microbatch_counts),
    "gradient buckets": lambda plan: plan.gradient_buckets > 1,
    "priorities of messages": lambda plan: plan.activation_priority is not None,
    "ZeRO": lambda plan: plan.zero_stage > 0,
    "recompute": lambda plan: not {*plan.recompute} <= {"none"},
    "weights shared by stages": lambda plan: bool(plan.shared_stages),
    "tensor, context and expert parallelism": lambda plan: plan.group_width * plan.expert_parallel_degree > 1,
    f"codecs other than {', '.join(WIRE_CODECS)}": lambda plan: not {*plan.gradient_codecs, *plan.activation_codecs} <= {*WIRE_CODECS},
}


def unplayable(plan: Plan) -> list[str]:
    """What a plan asks for that the runtime cannot do, in words."""
    return [words for words, asked in _ASKS.items() if asked(plan)]


def search_mistakes(search: SearchSpec) -> list[Mistake]:
    """Values of [search] that the runtime cannot play, where the search is to keep to what it can."""
    if not search.executable:
        return []
    mistakes = []
    for key, played in PLAYED.items():
        given = getattr(search, key)
        foreign = [value for value in ((given,) if isinstance(given, str) else given) if value not in played]
        if foreign:
            words = [value.describe() if isinstance(value, CompressionSpec) else str(value) for value in foreign]
            what = f"asks for {', '.join(words)}, which the runtime cannot play yet"
            mistakes.append(Mistake(f"search.{key}", what, "leave it out, or write executable = false to plan and simulate only"))
    return mistakes
