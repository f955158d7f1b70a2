"""What the runtime can play today: one registry for the search, which keeps to it unless told otherwise, and for `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chinchilla_sim.errors import Mistake
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec

WIRE_CODECS = ("none", "fp16", "bf16", "int8")

PLAYED: Mapping[str, tuple[object, ...]] = {
    "sequence_parallel": (False,),
    "context_parallel_degrees": (1,),
    "expert_parallel_degrees": (1,),
    "zero_stages": (0,),
    "gradient_codecs": WIRE_CODECS,
    "activation_codecs": WIRE_CODECS,
    "activation_priorities": (),
    "variants": (),
}
"""Keys of [search] and those of their values that the runtime plays."""

_ASKS: Mapping[str, Callable[[Plan], bool]] = {
    "priorities of messages": lambda plan: plan.activation_priority is not None,
    "ZeRO": lambda plan: plan.zero_stage > 0,
    "sequence parallelism": lambda plan: plan.sequence_parallel,
    "context and expert parallelism": lambda plan: plan.context_parallel_degree * plan.expert_parallel_degree > 1,
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
        foreign = [value for value in ((given,) if isinstance(given, str | bool) else given) if value not in played]
        if foreign:
            words = [value.describe() if isinstance(value, CompressionSpec) else str(value) for value in foreign]
            what = f"asks for {', '.join(words)}, which the runtime cannot play yet"
            mistakes.append(Mistake(f"search.{key}", what, "leave it out, or write executable = false to plan and simulate only"))
    return mistakes
