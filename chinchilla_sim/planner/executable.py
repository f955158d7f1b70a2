"""What the runtime can play today: one registry for the search, which keeps to it unless told otherwise, and for `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY
from chinchilla_sim.errors import Mistake
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.search import SearchSpec

ACTIVATION_CODECS = tuple(name for name in CODECS if name not in GRADIENTS_ONLY)
FSDP_CODECS = ("none", "fp16", "bf16")
PLAYED: Mapping[str, tuple[object, ...]] = {
    "sequence_parallel": (False,),
    "context_parallel_degrees": (1,),
    "expert_parallel_degrees": (1,),
    "zero_stages": (0, 1, 2, 3),
    "gradient_codecs": tuple(CODECS),
    "activation_codecs": ACTIVATION_CODECS,
    "activation_priorities": (),
}
"""Keys of [search] and those of their values that the runtime plays."""

_ASKS: Mapping[str, Callable[[Plan], bool]] = {
    "priorities of messages": lambda plan: plan.activation_priority is not None,
    "ZeRO 3 with split backward passes (FSDP2 divides gradients once a pass)": lambda plan: plan.zero_stage == 3 and plan.splits_backward,
    f"ZeRO 3 with gradient codecs other than {', '.join(FSDP_CODECS)}": lambda plan: (
        plan.zero_stage == 3 and not {*plan.gradient_codecs} <= {*FSDP_CODECS}
    ),
    "ZeRO with weights shared by stages that have replica counts of their own": lambda plan: bool(
        plan.zero_stage and plan.free_replicas and plan.shared_stages
    ),
    "sequence parallelism": lambda plan: plan.sequence_parallel,
    "local steps or late gradients with gradient clipping": lambda plan: plan.asynchronous and plan.clips_gradients,
    "local steps or late gradients with tensor parallelism": lambda plan: plan.asynchronous and plan.group_width > 1,
    "local steps or late gradients with weights shared by stages": lambda plan: plan.asynchronous and bool(plan.shared_stages),
    "context and expert parallelism": lambda plan: plan.context_parallel_degree * plan.expert_parallel_degree > 1,
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
        foreign = [str(value) for value in ((given,) if isinstance(given, str | bool) else given) if value not in played]
        mistakes += _foreign(key, foreign)
    return mistakes


def variant_mistakes(search: SearchSpec, training: bool) -> list[Mistake]:
    """Compressed variants that cannot be run, where the search is to keep to what can."""
    if not search.executable:
        return []
    return _foreign("variants", [one.describe() for one in search.variants if training and one.quantize == "bf16"])


def _foreign(key: str, words: list[str]) -> list[Mistake]:
    what = f"asks for {', '.join(words)}, which the runtime cannot play yet"
    cure = "leave it out, or write executable = false to plan and simulate only"
    return [Mistake(f"search.{key}", what, cure)] if words else []
