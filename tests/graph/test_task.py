"""Task graphs: order, what crosses a cut, JSON, and parameters that are shared."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.graph.task import LOSS_OP, Task, TaskGraph, Weight, loss_task, with_loss
from chinchilla_sim.graph.zoo import chain, mlp


def skipping(*edges: tuple[str, str]) -> TaskGraph:
    """input, a, b, c in a line, 10, 20, 30 and 40 bytes, with further edges."""
    tasks = tuple(
        Task(name, op, output_bytes=size) for name, op, size in (("input", "input", 10), ("a", "x", 20), ("b", "x", 30), ("c", "x", 40))
    )
    return TaskGraph("skip", 1, tasks, (("input", "a"), ("a", "b"), ("b", "c"), *edges))


def names(tasks: list[Task]) -> list[str]:
    """Names of tasks."""
    return [task.name for task in tasks]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 9), st.booleans())
def test_json_gives_the_same_graph_back(widths: list[int], batch_size: int, training: bool) -> None:
    """from_dict undoes to_dict through JSON text: equal graph, equal digest."""
    graph = mlp(widths, batch_size, training)
    again = TaskGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.digest == graph.digest


@given(st.integers(0, 5), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_crossing_tensors_are_those_with_a_reader_behind_the_cut(cut: int, pairs: set[tuple[int, int]]) -> None:
    """live_after lists exactly the producers up to the cut that have an edge to a task behind it, each once."""
    edges = tuple(sorted((str(a), str(b)) for a, b in pairs if a < b))
    graph = TaskGraph("any", 1, tuple(Task(str(index), "x") for index in range(6)), edges)
    assert names(graph.live_after(cut)) == sorted({a for a, b in edges if int(a) <= cut < int(b)})


def test_skip_connection_crosses_every_cut_below_it() -> None:
    """A skip from a to c crosses the cut behind b together with b's output; without it only b's crosses."""
    assert [names(skipping().live_after(position)) for position in range(4)] == [["input"], ["a"], ["b"], []]
    assert [names(skipping(("a", "c")).live_after(position)) for position in range(4)] == [["input"], ["a"], ["a", "b"], []]


def test_skip_from_the_input_crosses_every_cut() -> None:
    """The model's input travels along when a late task reads it."""
    assert [names(skipping(("input", "c")).live_after(position)) for position in range(3)] == [["input"], ["input", "a"], ["input", "b"]]


def test_digest_is_of_what_is_computed() -> None:
    """Name and origin do not change the digest; one byte of one task does."""
    graph = skipping()
    assert replace(graph, name="other", source="elsewhere").digest == graph.digest
    changed = (*graph.tasks[:-1], replace(graph.tasks[-1], output_bytes=41))
    assert replace(graph, tasks=changed).digest != graph.digest


def test_shared_parameter_counts_once() -> None:
    """Two tasks that use one weight hold its bytes once together, and once each alone."""
    tasks = (Task("a", "linear", parameters=("w", "v")), Task("b", "linear", parameters=("w",)))
    graph = TaskGraph("tied", 1, tasks, (("a", "b"),), {"w": Weight(100.0, (25,)), "v": Weight(4.0, (1,))})
    assert graph.total_parameter_bytes == graph.trained_bytes_of(tasks) == 104
    assert [graph.trained_bytes_of([task]) for task in tasks] == [104, 100]
    assert graph.parameter_count == 26


def test_buffers_and_frozen_weights_are_held_but_not_trained() -> None:
    """A buffer is no parameter, a frozen parameter has no gradient; a quantized one has fewer bytes than values."""
    task = Task("a", "linear", parameters=("w", "frozen", "mean"))
    weights = {"w": Weight(8.0, (2,)), "frozen": Weight(3.0, (2, 3), trained=False), "mean": Weight(4.0, (1,), False, buffer=True)}
    graph = TaskGraph("mixed", 1, (task,), (), weights)
    assert (graph.trained_bytes_of([task]), graph.untrained_bytes_of([task])) == (8, 7)
    assert (graph.total_parameter_bytes, graph.parameter_count) == (11, 8)


def test_every_field_survives_json() -> None:
    """Groups, nested attributes and all kinds of weights read back as they were."""
    member = Task("a.0", "conv2d", 1.5, 2.5, 3.5, attributes=(("stride", (1, 2)), ("mode", "same"), ("clip", None)))
    group = Task(
        "a", "group", 4.0, parameters=("w", "b"), saved=("x", "a"), saved_bytes=7.0, needs_gradient=False,
        launch_count=3, recomputable=False, operands=("x", "weight:w"), shapes=((2, 3), ()), module="layers.0", members=(member, member),
    )  # fmt: skip
    weights = {"w": Weight(6.0, (2, 3)), "b": Weight(2.0, (2,), False, True)}
    graph = TaskGraph("all", 2, (Task("x", "input"), group), (("x", "a"),), weights, "by hand", 2.0, ("one", "two"))
    again = TaskGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.tasks[1].kernels == (member, member)


def test_networkx_view_carries_tasks_and_tensor_bytes() -> None:
    """The digraph has a vertex per task and on each edge the bytes of its producer's output."""
    graph = skipping(("a", "c"))
    assert list(graph.digraph.nodes) == ["input", "a", "b", "c"]
    assert graph.digraph.edges["a", "c"]["tensor_bytes"] == 20
    assert graph.digraph.nodes["b"]["task"].output_bytes == 30


def test_compute_tasks_are_all_but_the_inputs() -> None:
    """A partition distributes every task that is no input of the model, the loss too."""
    assert names(list(mlp([3, 2], 1).compute_tasks)) == ["linear", LOSS_OP]


def test_loss_reads_and_writes_the_outputs_once_each_way() -> None:
    """The appended loss costs bytes, no flop, keeps the outputs and hangs behind them."""
    output = Task("y", "linear", output_bytes=80)
    assert loss_task(output) == Task(
        LOSS_OP, LOSS_OP, 0, 0, 0, output_bytes=4, read_bytes=80, written_bytes=80, backward_read_bytes=80,
        backward_written_bytes=80, saved=("y",), launch_count=2,
    )  # fmt: skip
    assert with_loss([output], [], "y") == ((output, loss_task(output)), (("y", LOSS_OP),))


@given(st.integers(1, 30), st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 64))
def test_chain_adds_up_to_what_was_asked(task_count: int, parameter_count: int, work: int, batch_size: int) -> None:
    """Flop of forward and backward add up to the work, parameters to the count, and every cut carries one output."""
    graph = chain(task_count, parameter_count, float(work), 100.0, batch_size)
    assert graph.forward_flop + graph.backward_flop == pytest.approx(work)
    assert graph.total_parameter_bytes == 4 * parameter_count
    assert len(graph.compute_tasks) == task_count
    assert all(len(graph.live_after(position)) == 1 for position in range(task_count))
