"""Which ranks of a plan run on which machine, numbered as torchrun numbers them: node by node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Machines:
    """The nodes of a run in order: names in the scenario, processes on each, and the device of the first of them."""

    names: tuple[str, ...]
    rank_counts: tuple[int, ...]
    devices: tuple[Device, ...]

    @property
    def accelerated(self) -> bool:
        """Whether ranks compute on GPUs."""
        return all(device.products is not None for device in self.devices)

    @property
    def alike(self) -> bool:
        """Whether every node has as many ranks as the others, on the same kind of device, whatever it is called."""
        kinds = {replace(device, name="") for device in self.devices}
        return len(set(self.rank_counts)) == len(kinds) == 1


def number_by_node(plan: Plan, cluster: Cluster) -> Plan:
    """The same plan with its ranks renumbered, so that those of a node are neighbours."""
    order = sorted(range(plan.rank_count), key=lambda rank: (_first_rank(plan, cluster, rank), rank))
    new = {old: number for number, old in enumerate(order)}
    return replace(
        plan,
        placement=tuple(tuple(new[rank] for rank in row) for row in plan.placement),
        slots=tuple(slot for rank in order for slot in plan.slots_of(rank)),
    )


def _first_rank(plan: Plan, cluster: Cluster, rank: int) -> int:
    """The first rank on the same node as this one."""
    node = cluster.node_of(plan.slots_of(rank)[0])
    return next(other for other in range(plan.rank_count) if cluster.node_of(plan.slots_of(other)[0]) == node)


def machines_of(plan: Plan, cluster: Cluster) -> Machines:
    """The nodes of a plan that is numbered by node; a ScenarioError where a rank's own devices lie on several nodes, apart."""
    groups = [(name, list(slots)) for name, slots in groupby(plan.slots, key=cluster.node_of)]
    names = tuple(name for name, _ in groups)
    if len(set(names)) != len(names):
        what = "a rank's devices lie on several nodes, so that no numbering of ranks goes node by node, as torchrun's does"
        raise ScenarioError([Mistake("plan.slots", what, "plan with tensor parallelism within a node")])
    devices = tuple(cluster.device(slots[0], len(plan.slots)) for _, slots in groups)
    return Machines(names, tuple(len(slots) for _, slots in groups), devices)
