"""Task graphs from shape parameters alone, without torch; equal to the traced graph of the same shape.

linear, batch b, i inputs, o outputs:   forward 2 b i o flop; the weight's gradient and the input's
                                        gradient 2 b i o each (the first layer has no input gradient)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from chinchilla_sim.graph.task import Task, TaskGraph, with_loss

VALUE_BYTES = 4
INPUT_NAME = "input"


def linear_task(name: str, source: str, weight: str, bias: str, batch: int, inputs: int, outputs: int, input_needs_gradient: bool) -> Task:
    """`y = x W^T + b` for x of shape (batch, inputs), fp32."""
    flop = 2.0 * batch * inputs * outputs
    x, y, w = (float(VALUE_BYTES * n) for n in (batch * inputs, batch * outputs, inputs * outputs))
    bias_bytes = float(VALUE_BYTES * outputs)
    return Task(
        name=name,
        op="linear",
        forward_flop=flop,
        input_gradient_flop=flop if input_needs_gradient else 0.0,
        weight_gradient_flop=flop,
        output_bytes=y,
        read_bytes=x + w + bias_bytes,
        written_bytes=y,
        backward_read_bytes=y + x + (w if input_needs_gradient else 0.0),
        backward_written_bytes=w + bias_bytes + (x if input_needs_gradient else 0.0),
        parameters=(weight, bias),
        saved=(source,),
    )


def relu_task(name: str, size_bytes: float) -> Task:
    """Elementwise maximum with zero: by bytes, keeps its output."""
    return Task(
        name=name,
        op="relu",
        output_bytes=size_bytes,
        read_bytes=size_bytes,
        written_bytes=size_bytes,
        backward_read_bytes=2 * size_bytes,
        backward_written_bytes=size_bytes,
        saved=(name,),
    )


def mlp(widths: Sequence[int], batch_size: int, training: bool = True) -> TaskGraph:
    """Linear layers with ReLU between them, named as torch.export names an nn.Sequential of them.

    >>> mlp([784, 512, 10], batch_size=64).forward_flop
    52035584.0
    """
    inputs = Task(INPUT_NAME, "input", output_bytes=float(VALUE_BYTES * batch_size * widths[0]), needs_gradient=False, launch_count=0)
    tasks, source = [inputs], INPUT_NAME
    edges: list[tuple[str, str]] = []
    parameters: dict[str, float] = {}
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        suffix = f"_{layer}" if layer else ""
        if layer:
            relu = relu_task("relu" + (f"_{layer - 1}" if layer > 1 else ""), tasks[-1].output_bytes)
            tasks.append(relu)
            edges.append((source, relu.name))
            source = relu.name
        weight, bias = f"{2 * layer}.weight", f"{2 * layer}.bias"
        parameters |= {weight: float(VALUE_BYTES * i * o), bias: float(VALUE_BYTES * o)}
        linear = linear_task("linear" + suffix, source, weight, bias, batch_size, i, o, input_needs_gradient=layer > 0)
        tasks.append(linear)
        edges.append((source, linear.name))
        source = linear.name
    name = "mlp-" + "-".join(map(str, widths))
    all_tasks, all_edges = with_loss(tasks, edges, source) if training else (tuple(tasks), tuple(edges))
    return TaskGraph(name, batch_size, all_tasks, all_edges, parameters, source="formula mlp")


def chain(task_count: int, parameter_count: int, work_flop: float, output_bytes: float, batch_size: int) -> TaskGraph:
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
        weight = float(VALUE_BYTES * size)
        task = Task(
            name=f"task{index}",
            op="synthetic",
            forward_flop=third,
            input_gradient_flop=third,
            weight_gradient_flop=third,
            output_bytes=output_bytes,
            read_bytes=output_bytes + weight,
            written_bytes=output_bytes,
            backward_read_bytes=2 * output_bytes + weight,
            backward_written_bytes=output_bytes + weight,
            parameters=(f"task{index}.weight",),
            saved=(tasks[-1].name,),
        )
        edges.append((tasks[-1].name, task.name))
        tasks.append(task)
    parameters = {f"task{index}.weight": float(VALUE_BYTES * size) for index, size in enumerate(sizes)}
    return TaskGraph(f"chain-{task_count}", batch_size, tuple(tasks), tuple(edges), parameters, source="formula chain")
