"""Plan, simulate, run and check the split and compression of a neural network over several devices.

The tour: `scenario/` (what do you ask for?), `graph/` (what must be computed?), `cluster/` (what can it run on?),
`cost/` (how long, how much, one thing?), `planner/` (how to split and compress?), `simulator/` (what would happen?),
`runtime/` (do it for real), `validation/` (was it right?), `report/` (how to show it?). `setting.py` makes a
scenario ready, `running.py` runs a plan, and `workflow.py` is the whole program on one page. `api.py` is all of it from Python; its
names can be imported from here, and are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chinchilla_sim.api import FoundPlan, Shown, compare, find_plans, load_scenario, run, show, simulate

__all__ = ["FoundPlan", "Shown", "compare", "find_plans", "load_scenario", "run", "show", "simulate"]


def __getattr__(name: str) -> Any:
    """A name of `api.py`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from chinchilla_sim import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """What tab completion offers."""
    return sorted([*globals(), *__all__])
