"""Groups of tasks: exact totals, exact crossings, exact memory; blocks found whatever they are called."""

import itertools
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.coarsen import coarsen, expand
from chinchilla_sim.graph.repeats import Repeat, find_repeats
from chinchilla_sim.graph.task import Task, TaskGraph

AMOUNTS = [name for name in Task.__dataclass_fields__ if name.endswith(("_flop", "_count")) or name in ("read_bytes", "written_bytes")]


@st.composite
def random_graphs(draw: st.DrawFn) -> TaskGraph:
    """Random DAGs of linear, relu and add tasks on (batch, 4), some sharing weights."""
    builder = GraphBuilder(2, training=draw(st.booleans()))
    names = [builder.input("x", (2, 4))]
    for index in range(draw(st.integers(3, 25))):
        parents = draw(st.lists(st.sampled_from(names[-6:]), min_size=1, max_size=2, unique=True))
        if len(parents) == 2:
            names.append(builder.apply("add", parents, [(2, 4)]))
        elif draw(st.booleans()):
            weight = builder.weight(f"w{draw(st.integers(0, index))}", (4, 4))
            names.append(builder.apply("linear", [*parents, weight], [(2, 4)]))
        else:
            names.append(builder.apply("relu", parents, [(2, 4)]))
    return builder.finish(names[-1], "random")


def blocks(count: int, widths: tuple[int, ...] = (8, 16, 8), odd: int | None = None, prefix: str = "") -> TaskGraph:
    """`count` residual blocks of linear layers, behind an embedding-like layer; block `odd` is wider."""
    builder = GraphBuilder(2)
    mask = builder.apply("arange", [], [(2, 1)], name=f"{prefix}mask", floating=False)
    x = builder.apply("linear", [builder.input("x", (2, 4)), builder.weight(f"{prefix}first", (8, 4))], [(2, 8)], name=f"{prefix}start")
    for block in range(count):
        y = x
        for layer, (i, o) in enumerate(itertools.pairwise(widths)):
            inner = 32 if block == odd and layer > 0 else i
            outer = 32 if block == odd and layer < len(widths) - 2 else o
            weight = builder.weight(f"{prefix}w{block}.{layer}", (outer, inner))
            y = builder.apply("linear", [y, weight], [(2, outer)], name=f"{prefix}b{block}l{layer}")
            y = builder.apply("relu", [y], [(2, outer)], name=f"{prefix}b{block}r{layer}")
        y = builder.apply("where", [y, mask], [(2, 8)], name=f"{prefix}m{block}")
        x = builder.apply("add", [x, y], [(2, 8)], name=f"{prefix}sum{block}")
    return builder.finish(x, "blocks")


def saved_bytes(graph: TaskGraph, tasks: list[Task]) -> float:
    """Distinct saved tensors of some tasks."""
    names = {name for task in tasks for name in task.saved}
    return sum(graph.tasks[graph.position[name]].output_bytes for name in names) + sum(task.saved_bytes for task in tasks)


@settings(max_examples=60, deadline=None)
@given(random_graphs(), st.integers(1, 8))
def test_totals_crossings_and_memory_stay_exact(graph: TaskGraph, maximum: int) -> None:
    """Every amount adds up, the same tensors cross behind each group, and any run of groups saves the same bytes."""
    coarse = coarsen(graph, maximum)
    for name in AMOUNTS:
        assert sum(getattr(task, name) for task in coarse.tasks) == sum(getattr(task, name) for task in graph.tasks)
    assert coarse.total_parameter_bytes == graph.total_parameter_bytes
    names = expand([task.name for task in coarse.compute_tasks], coarse)
    assert names == tuple(task.name for task in graph.compute_tasks)
    done: list[Task] = []
    for task in coarse.compute_tasks:
        done += task.kernels
        fine = {live.name for live in graph.live_after(graph.position[done[-1].name])}
        assert {live.name for live in coarse.live_after(coarse.position[task.name])} == fine
        upto = [group for group in coarse.compute_tasks if coarse.position[group.name] <= coarse.position[task.name]]
        assert saved_bytes(coarse, upto) == saved_bytes(graph, done)


@settings(max_examples=60, deadline=None)
@given(random_graphs(), st.integers(1, 8))
def test_order_and_antichains_stay_valid(graph: TaskGraph, maximum: int) -> None:
    """Edges go forward, and groups that do not depend on each other have no members that do."""
    coarse = coarsen(graph, maximum)
    assert all(coarse.position[a] < coarse.position[b] for a, b in coarse.edges)
    fine, groups = nx.transitive_closure_dag(graph.digraph), nx.transitive_closure_dag(coarse.digraph)
    for a in coarse.compute_tasks:
        for b in coarse.compute_tasks:
            if a is not b and not groups.has_edge(a.name, b.name) and not groups.has_edge(b.name, a.name):
                assert not any(fine.has_edge(m.name, n.name) for m in a.kernels for n in b.kernels)


def test_blocks_are_found_and_cut_alike() -> None:
    """Twelve residual blocks of six tasks: one group each, then two each."""
    graph = blocks(12)
    assert [(repeat.length, repeat.count) for repeat in find_repeats(graph)] == [(6, 12)]
    for maximum in (20, 30):
        coarse = coarsen(graph, maximum)
        assert len(coarse.compute_tasks) <= maximum
        sums = [task.name for task in coarse.compute_tasks if task.name.startswith("sum")]
        assert len(sums) >= 11
        sizes = {tuple(member.op for member in task.kernels) for task in coarse.compute_tasks if task.name in sums[1:-1]}
        assert len(sizes) == 1


def test_names_do_not_matter() -> None:
    """Renaming every task and weight finds the same blocks."""
    assert find_repeats(blocks(6)) == find_repeats(blocks(6, prefix="other_"))


def test_a_wider_block_is_no_copy() -> None:
    """The block whose weights are larger ends the repeat."""
    found = find_repeats(blocks(9, odd=4))
    assert all(repeat.count <= 4 for repeat in found if repeat.length == 6)
    assert sum(repeat.count for repeat in found if repeat.length == 6) >= 6


def test_shared_weights_are_no_copy_of_own_ones() -> None:
    """Blocks that all use the first block's weights are not copies of a block that owns its weights."""
    graph = blocks(2)
    tasks = tuple(replace(task, parameters=("w0.0",)) if task.name == "b1l0" else task for task in graph.tasks)
    shared = replace(graph, tasks=tasks)
    assert find_repeats(graph) and not [repeat for repeat in find_repeats(shared) if repeat.length == 6]


def test_repeat_says_what_it_is() -> None:
    """Reports print it."""
    assert (str(Repeat(3, 22, 80)), Repeat(3, 22, 80).end) == ("80 x block of 22 tasks", 3 + 22 * 80)


def test_small_graph_stays_as_it_is() -> None:
    """Nothing to merge: the same object comes back, and a coarse graph is not merged again."""
    graph = blocks(3)
    assert coarsen(graph, 100) is graph
    coarse = coarsen(graph, 8)
    assert coarsen(coarse, 8) is coarse


@pytest.mark.parametrize("maximum", [300, 64])
def test_coarse_graph_survives_json(maximum: int) -> None:
    """Groups with their members read back equal."""
    coarse = coarsen(blocks(100), maximum)
    assert len(coarse.compute_tasks) <= maximum
    assert TaskGraph.from_dict(coarse.to_dict()) == coarse
