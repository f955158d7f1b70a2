"""Task graphs from shape parameters alone, without torch; equal to the traced graph of the same shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.task import Task, TaskGraph, Weight

INPUT_NAME = "input"


def linear_task(batch: int, inputs: int, outputs: int, input_needs_gradient: bool) -> Task:
    """`y = x W^T + b` alone, for x of shape (batch, inputs), fp32."""
    builder = GraphBuilder(batch)
    x = builder.input(INPUT_NAME, (batch, inputs))
    if input_needs_gradient:
        x = builder.apply("add", [x, builder.weight("shift", (batch, inputs))], [(batch, inputs)])
    operands = [x, builder.weight("weight", (outputs, inputs)), builder.weight("bias", (outputs,))]
    return builder.tasks[builder.apply("linear", operands, [(batch, outputs)])]


def relu_task(size: int) -> Task:
    """Elementwise maximum with zero of `size` fp32 values that need a gradient."""
    builder = GraphBuilder(1)
    return builder.tasks[builder.apply("relu", [builder.weight("x", (size,))], [(size,)])]


def mlp(widths: Sequence[int], batch_size: int, training: bool = True, value_bytes: float = 4.0) -> TaskGraph:
    """Linear layers with ReLU between them, named as torch.export names an nn.Sequential of them.

    >>> mlp([784, 512, 10], batch_size=64).forward_flop
    52035584.0
    """
    builder = GraphBuilder(batch_size, training, value_bytes)
    x = builder.input(INPUT_NAME, (batch_size, widths[0]))
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        if layer:
            x = builder.apply("relu", [x], [(batch_size, i)], module=str(2 * layer - 1))
        operands = [x, builder.weight(f"{2 * layer}.weight", (o, i)), builder.weight(f"{2 * layer}.bias", (o,))]
        x = builder.apply("linear", operands, [(batch_size, o)], module=str(2 * layer))
    return builder.finish(x, "mlp-" + "-".join(map(str, widths)), source="formula mlp")


def chain(
    task_count: int,
    parameter_count: int,
    work_flop: float,
    output_bytes: float,
    batch_size: int,
    value_bytes: float = 4.0,
) -> TaskGraph:
    """A synthetic chain of equal tasks: `work_flop` is one step (forward a third, each gradient a third).

    >>> graph = chain(20, 100_000_000, 1e10, 4e6, batch_size=64)
    >>> round(graph.forward_flop + graph.backward_flop), graph.total_parameter_bytes
    (10000000000, 400000000.0)
    """
    third = work_flop / task_count / 3
    sizes = [parameter_count // task_count + (index < parameter_count % task_count) for index in range(task_count)]
    inputs = Task(INPUT_NAME, "input", output_bytes=output_bytes, needs_gradient=False, launch_count=0)
    tasks, edges = [inputs], []
    for index, size in enumerate(sizes):
        weight = value_bytes * size
        task = Task(
            name=f"task{index}",
            op="synthetic",
            forward_flop=third,
            input_gradient_flop=third,
            weight_gradient_flop=third,
            output_bytes=output_bytes,
            read_bytes=output_bytes + weight,
            written_bytes=output_bytes,
            weight_bytes=weight,
            backward_read_bytes=2 * output_bytes + weight,
            backward_written_bytes=output_bytes + weight,
            backward_weight_bytes=2 * weight,
            parameters=(f"task{index}.weight",),
            saved=(tasks[-1].name,),
        )
        edges.append((tasks[-1].name, task.name))
        tasks.append(task)
    weights = {f"task{index}.weight": Weight(value_bytes * size, (size,)) for index, size in enumerate(sizes)}
    return TaskGraph(f"chain-{task_count}", batch_size, tuple(tasks), tuple(edges), weights, "formula chain", value_bytes)
