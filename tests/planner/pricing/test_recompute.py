"""Recompute: what is kept of each layer, and what it costs."""

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.graph.attention import with_separate_attention
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.shard import shard_graph
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.recompute import Blocks, keep_all
from chinchilla_sim.planner.program import passes_of
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec

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
    return Plan((names,), ((0,),), (0,), BATCH, 1, "1f1b", ("none",), (), recompute=(recompute,))


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


PUBLISHED = {"22B": (64, 6144), "175B": (96, 12288), "530B": (128, 20480), "1T": (160, 25600)}
"""Heads and width of the models of Korthikanti et al. 2022, table 3."""


def layer_bytes(name: str, recompute: str, tensor: int = 1, sequence: bool = False) -> float:
    """What one layer keeps per s b h, s = 2048 and b = 1, in half precision: the difference of three layers and two."""
    heads, width = PUBLISHED[name]
    saved = []
    for layers in (2, 3):
        whole = FORMULAS["gpt"](
            batch_size=1, training=True, value_bytes=2.0, layers=layers, width=width, heads=heads, tokens=2048, vocabulary=51200
        )
        graph = shard_graph(with_separate_attention(whole), tensor, sequence).graph
        found = keep_all(graph, graph.compute_tasks) if recompute == "none" else Blocks(graph, recompute).recompute(graph.compute_tasks)
        saved.append(found.saved_bytes)
    return (saved[1] - saved[0]) / (2048 * width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_keep_what_korthikanti_counts(name: str) -> None:
    """Their table 2, t = 8: 34 + 5as/h, with tensor parallelism 10 + 24/t + 5as/ht, with sequence parallelism 34/t + 5as/ht; selective
    recompute drops the last term, full recompute keeps 2."""
    heads, width = PUBLISHED[name]
    scores = 5 * heads * 2048 / width
    assert layer_bytes(name, "none") == pytest.approx(34 + scores)
    assert layer_bytes(name, "none", 8) == pytest.approx(10 + 24 / 8 + scores / 8)
    assert layer_bytes(name, "none", 8, True) == pytest.approx((34 + scores) / 8)
    assert layer_bytes(name, "selective", 8) == pytest.approx(10 + 24 / 8)
    assert layer_bytes(name, "selective", 8, True) == pytest.approx(34 / 8)
    assert layer_bytes(name, "full", 8) == pytest.approx(2)


def test_selective_recompute_saves_what_korthikanti_states() -> None:
    """70 % of a layer's activations for GPT-3 and 65 % for MT-NLG (section 5); with sequence parallelism under 20 % of the baseline."""
    for name, share in (("175B", 0.70), ("530B", 0.65)):
        assert 1 - layer_bytes(name, "selective") / layer_bytes(name, "none") == pytest.approx(share, abs=0.005)
        assert layer_bytes(name, "selective", 8, True) / layer_bytes(name, "none", 8) < 0.21


def test_fused_attention_has_nothing_to_drop(graph: TaskGraph) -> None:
    """It never stores its scores."""
    found = Blocks(graph, "selective").recompute(graph.compute_tasks)
    assert found == keep_all(graph, graph.compute_tasks) and not found.again


def test_cores_of_separate_kernels_are_found() -> None:
    """Transformer-XL's attention is spelled out: products, sum, scale, mask, softmax, dropout; queries, keys and values are kept."""
    graph = FORMULAS["transformer_xl"](
        batch_size=1, training=True, value_bytes=2.0, layers=2, width=64, heads=4, inner_width=128, tokens=32, memory=0
    )
    scores = 4 * 32 * 32 * 2
    found, plain = Blocks(graph, "selective").recompute(graph.compute_tasks), keep_all(graph, graph.compute_tasks)
    kinds = {graph.tasks[graph.position[name]].op for name in found.again}
    assert {"einsum", "softmax", "dropout"} <= kinds and "linear" not in kinds
    assert plain.saved_bytes - found.saved_bytes >= 2 * 2 * scores


@pytest.mark.parametrize("formula", ["gpt", "transformer_xl"])
def test_groups_drop_what_their_kernels_drop(formula: str) -> None:
    """A coarse graph keeps as much under selective recompute as the fine one, and runs the same kernels twice."""
    shape = {"layers": 4, "width": 64, "heads": 4, "tokens": 32, "vocabulary": 99}
    shape |= {"inner_width": 128, "memory": 0} if formula == "transformer_xl" else {}
    fine = with_separate_attention(FORMULAS[formula](batch_size=2, training=True, value_bytes=2.0, **shape))
    coarse = coarsen(fine, 8)
    dropped = []
    for graph in (fine, coarse):
        found = Blocks(graph, "selective").recompute(graph.compute_tasks)
        dropped.append((keep_all(graph, graph.compute_tasks).saved_bytes - found.saved_bytes, found.again))
    assert len(coarse.compute_tasks) < len(fine.compute_tasks)
    assert dropped[0] == dropped[1] and dropped[0][0] > 0


def test_selective_recompute_costs_the_attention_core() -> None:
    """On a device of 1 Tflop/s the backward pass takes the attention's forward flop longer; the peak is lower."""
    graph = with_separate_attention(
        FORMULAS["gpt"](batch_size=BATCH, training=True, value_bytes=4.0, layers=2, width=64, heads=4, tokens=256, vocabulary=64)
    )
    tables = {"nodes": [{"name": "n", "peak": "1 Tflop/s", "memory": "16 GiB"}]}
    pricer = Pricer(graph, build_cluster(ClusterSpec.model_validate(tables), "fp32"), JobSpec(global_batch_size=BATCH))
    plain, selective = (pricer.price(plan_of(graph, recompute)).stages[0][0] for recompute in ("none", "selective"))
    core_flop = sum(task.forward_flop for task in graph.tasks if "attention" in task.op)
    assert selective.action_s[Op.B] - plain.action_s[Op.B] == pytest.approx(core_flop / 1e12)
    assert selective.action_s[Op.F] == plain.action_s[Op.F]
    assert selective.saved_bytes + selective.transient_bytes < plain.saved_bytes + plain.transient_bytes
