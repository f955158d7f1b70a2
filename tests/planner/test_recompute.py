"""Full recompute: what is kept of each layer, and what it costs."""

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing import Pricer
from chinchilla_sim.planner.program import passes_of
from chinchilla_sim.planner.recompute import Blocks
from chinchilla_sim.scenario.schema import ClusterSpec, JobSpec

LAYERS, WIDTH, TOKENS, BATCH, VOCABULARY = 6, 128, 64, 4, 512


@pytest.fixture
def graph() -> TaskGraph:
    """A decoder of six layers, fp32."""
    return FORMULAS["gpt"](
        batch_size=BATCH, training=True, value_bytes=4.0, layers=LAYERS, width=WIDTH, heads=4, tokens=TOKENS, vocabulary=VOCABULARY
    )


def plan_of(graph: TaskGraph, recompute: str) -> Plan:
    """Everything on one rank, one microbatch."""
    names = tuple(task.name for task in graph.compute_tasks)
    return Plan((names,), ((0,),), (0,), BATCH, 1, "1f1b", ("none",), (), recompute=recompute)


def test_only_the_input_of_each_layer_is_kept(graph: TaskGraph) -> None:
    """Six layers keep about six tensors of b s h instead of dozens; one layer's tensors come back while it runs again."""
    found = Blocks(graph).recompute(graph.compute_tasks)
    tensor = BATCH * TOKENS * WIDTH * 4
    everything = sum(graph.tasks[graph.position[name]].output_bytes for name in {n for task in graph.compute_tasks for n in task.saved})
    outside = [task for task in graph.compute_tasks if task.name not in found.again]
    kept_outside = sum(graph.tasks[graph.position[name]].output_bytes for name in {n for task in outside for n in task.saved})
    log_probabilities = BATCH * TOKENS * VOCABULARY * 4
    assert found.saved_bytes <= kept_outside + (LAYERS + 1) * tensor + sum(task.saved_bytes for task in outside) + log_probabilities
    assert found.saved_bytes < everything / 3
    assert 5 * tensor < found.transient_bytes < 40 * tensor


def test_it_costs_a_forward_pass_and_saves_memory(graph: TaskGraph) -> None:
    """The backward pass takes the forward pass of the layers on top; the peak is lower, and as simulated."""
    tables = {"nodes": [{"name": "n", "peak": "1 Tflop/s", "memory": "16 GiB"}]}
    pricer = Pricer(graph, build_cluster(ClusterSpec.model_validate(tables), "fp32"), JobSpec(global_batch_size=BATCH))
    plain, full = (pricer.price(plan_of(graph, recompute)).stages[0][0] for recompute in ("none", "full"))
    again = Blocks(graph).recompute(graph.compute_tasks).again
    layers_flop = sum(task.forward_flop for task in graph.compute_tasks if task.name in again)
    assert full.action_s[Op.F] == plain.action_s[Op.F]
    assert full.action_s[Op.B] - plain.action_s[Op.B] == pytest.approx(layers_flop / 1e12)
    assert layers_flop > 0.5 * graph.forward_flop
    peaks = [
        pricer.price(plan_of(graph, recompute)).peak_bytes(plan_of(graph, recompute), 0, passes_of(plan_of(graph, recompute), 0)[0])
        for recompute in ("none", "full")
    ]
    assert peaks[1] < peaks[0]
