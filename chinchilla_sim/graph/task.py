"""Task and TaskGraph: the operators of a model, what each costs in flop and bytes, and who feeds whom.

All amounts of a graph are for one batch of `batch_size` samples. Flop and tensor bytes scale with the
batch, parameter bytes do not; `cost/` turns amounts into seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import networkx as nx

GRAPH_FORMAT = "chinchilla-task-graph"
GRAPH_VERSION = 2
VALUE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
"""Bytes of one value at each precision of a job."""

WEIGHT_PREFIX = "weight:"
FORMAT = "weight_format"
"""Attribute of tasks that read a weight which is stored in another number format than the graph's."""
NARROW = "_narrow"
"""End of the name of the first of two low-rank factors, behind that of the task that became two."""
ROUNDS = "rounds_to"
"""Attribute of tasks that round a weight, and perhaps their input, to integers as they compute: training for such weights."""
INPUT_OP = "input"
LOSS_OP = "loss"
FUSED_LOSS = ("fused", True)
"""Attribute of a loss whose log-probabilities stay on chip."""


Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer: its bytes as they are stored, whatever the batch.

    `trained` ones have a gradient and optimizer state; buffers and frozen parameters do not. A quantized weight has fewer
    bytes than its shape says.
    """

    bytes: float
    shape: Shape = ()
    trained: bool = True
    buffer: bool = False

    @property
    def value_count(self) -> int:
        """Elements, however they are packed."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Task:
    """One operator of the model (or a group of them), for one batch of the graph's `batch_size`.

    `read_bytes` (with weights) and `written_bytes` are of the forward pass, `backward_*_bytes` of the backward pass;
    `weight_bytes` and `backward_weight_bytes` are the parts of each sum that do not grow with the batch. The
    backward pass makes `input_gradient_flop` (0 where no input needs a gradient) and `weight_gradient_flop`.
    `parameters` are names into `TaskGraph.weights`; `saved` names the tasks whose outputs this one keeps for its
    backward pass, `saved_bytes` what it keeps beside them (a dropout mask, a group's inner tensors). `recomputable`
    says whether recompute may run it twice and drop what it saves (not where that changes a buffer).
    `launch_count` is the number of kernels that the forward pass starts (0 for views).

    What amounts follow from, where it is known: `operands` in order (names of tasks, or `weight:` and the name
    of a weight), `shapes` of the outputs and the operator's `attributes`. `module` is the path in the user's
    model. A group made by `coarsen` has `members`, and its amounts are their sums.
    """

    name: str
    op: str
    forward_flop: float = 0.0
    input_gradient_flop: float = 0.0
    weight_gradient_flop: float = 0.0
    output_bytes: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    weight_bytes: float = 0.0
    backward_read_bytes: float = 0.0
    backward_written_bytes: float = 0.0
    backward_weight_bytes: float = 0.0
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    saved_bytes: float = 0.0
    needs_gradient: bool = True
    launch_count: int = 1
    recomputable: bool = True
    operands: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    module: str = ""
    members: tuple[Task, ...] = ()

    @property
    def backward_flop(self) -> float:
        """Flop of the whole backward pass: one product per operand that needs a gradient."""
        return self.input_gradient_flop + self.weight_gradient_flop

    @property
    def weight_format(self) -> str:
        """Number format of the weight that it reads, "" for the graph's own."""
        return str(dict(self.attributes).get(FORMAT, ""))

    @property
    def kernels(self) -> tuple[Task, ...]:
        """The operators that really run: the members of a group, else the task itself."""
        return self.members or (self,)


@dataclass(frozen=True)
class TaskGraph:
    """Tasks with their dependencies, in one fixed topological order.

    `tasks` is in topological order with the model's inputs (op `input`, no cost) first; `edges` are pairs (producer,
    consumer). `weights` are all parameters and buffers by name; one that several tasks use is listed once.
    `value_bytes` is the size of one activation value (4 in fp32). `notes` says what is not exact in the graph.
    """

    name: str
    batch_size: int
    tasks: tuple[Task, ...]
    edges: tuple[tuple[str, str], ...]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    source: str = ""
    value_bytes: float = 4.0
    notes: tuple[str, ...] = ()

    @cached_property
    def position(self) -> dict[str, int]:
        """Index of each task in `tasks`."""
        return {task.name: index for index, task in enumerate(self.tasks)}

    @cached_property
    def digraph(self) -> nx.DiGraph[str]:
        """The same graph for networkx: vertices carry `task`, edges carry `tensor_bytes`."""
        graph: nx.DiGraph[str] = nx.DiGraph(name=self.name, batch_size=self.batch_size)
        for task in self.tasks:
            graph.add_node(task.name, task=task)
        for producer, consumer in self.edges:
            graph.add_edge(producer, consumer, tensor_bytes=self.tasks[self.position[producer]].output_bytes)
        return graph

    @cached_property
    def compute_tasks(self) -> tuple[Task, ...]:
        """All tasks but the model's inputs, in order: what a partition distributes."""
        return tuple(task for task in self.tasks if task.op != INPUT_OP)

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Position of the last consumer of each task's output (its own position without consumer)."""
        last = dict(self.position)
        for producer, consumer in self.edges:
            last[producer] = max(last[producer], self.position[consumer])
        return last

    def live_after(self, position: int) -> list[Task]:
        """Tasks up to `position` whose outputs a later task reads: what crosses a cut behind that task."""
        return [task for task in self.tasks[: position + 1] if self.last_use[task.name] > position]

    @property
    def forward_flop(self) -> float:
        """Flop of one forward pass."""
        return sum(task.forward_flop for task in self.tasks)

    @property
    def backward_flop(self) -> float:
        """Flop of one backward pass."""
        return sum(task.backward_flop for task in self.tasks)

    @property
    def parameter_count(self) -> int:
        """Values of all parameters, trained and frozen, without buffers; one that several tasks share counts once."""
        return sum(weight.value_count for weight in self.weights.values() if not weight.buffer)

    @property
    def total_parameter_bytes(self) -> float:
        """Bytes of all parameters, without buffers; one that several tasks share counts once."""
        return sum(weight.bytes for weight in self.weights.values() if not weight.buffer)

    def parameter_bytes_of(self, tasks: Iterable[Task]) -> float:
        """Bytes of the parameters of these tasks, trained or frozen, without buffers; a shared one counts once."""
        return sum(weight.bytes for weight in self.weights_of(tasks) if not weight.buffer)

    def weights_of(self, tasks: Iterable[Task]) -> list[Weight]:
        """Weights that these tasks use; a shared one once."""
        return [self.weights[name] for name in dict.fromkeys(name for task in tasks for name in task.parameters)]

    def trained_bytes_of(self, tasks: Iterable[Task]) -> float:
        """Bytes of the parameters of these tasks that have a gradient; a shared one counts once."""
        return sum(weight.bytes for weight in self.weights_of(tasks) if weight.trained)

    def untrained_bytes_of(self, tasks: Iterable[Task]) -> float:
        """Bytes of the buffers and frozen parameters of these tasks; a shared one counts once."""
        return sum(weight.bytes for weight in self.weights_of(tasks) if not weight.trained)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, read back by `from_dict` to an equal graph."""
        return {
            "format": GRAPH_FORMAT,
            "version": GRAPH_VERSION,
            "name": self.name,
            "batch_size": self.batch_size,
            "source": self.source,
            "value_bytes": self.value_bytes,
            "notes": list(self.notes),
            "weights": {name: _without_defaults(weight, Weight(bytes=-1.0)) for name, weight in self.weights.items()},
            "tasks": [_task_dict(task) for task in self.tasks],
            "edges": [list(edge) for edge in self.edges],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TaskGraph:
        """Inverse of `to_dict`; the caller has checked the shape (`graph.importers`)."""
        return TaskGraph(
            name=data["name"],
            batch_size=data["batch_size"],
            tasks=tuple(_task(row) for row in data["tasks"]),
            edges=tuple((producer, consumer) for producer, consumer in data["edges"]),
            weights={name: Weight(**_tuples(row)) for name, row in data["weights"].items()},
            source=data.get("source", ""),
            value_bytes=data.get("value_bytes", 4.0),
            notes=tuple(data.get("notes", ())),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what is computed (not over where it came from)."""
        content = {key: value for key, value in self.to_dict().items() if key not in ("source", "name", "notes")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_defaults(value: Task | Weight, fresh: Task | Weight) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__ if getattr(value, name) != getattr(fresh, name)}


def _task_dict(task: Task) -> dict[str, Any]:
    row = _without_defaults(task, Task(name="", op=""))
    return row | ({"members": [_task_dict(member) for member in task.members]} if task.members else {})


def _task(row: Mapping[str, Any]) -> Task:
    members = tuple(_task(member) for member in row.get("members", ()))
    return Task(**(_tuples({key: value for key, value in row.items() if key != "members"}) | {"members": members}))


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, at every depth."""
    return {key: _frozen(value) for key, value in row.items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def loss_task(output: Task, value_bytes: float = 4.0) -> Task:
    """The loss at the end of a training graph, by bytes: log-softmax and gather read and write the outputs once."""
    size = output.output_bytes
    return Task(
        name=LOSS_OP,
        op=LOSS_OP,
        output_bytes=value_bytes,
        read_bytes=size,
        written_bytes=size,
        backward_read_bytes=size,
        backward_written_bytes=size,
        saved=(output.name,),
        launch_count=2,
    )


def with_loss(tasks: Sequence[Task], edges: Sequence[tuple[str, str]], output: str) -> tuple[tuple[Task, ...], tuple[tuple[str, str], ...]]:
    """Append the loss behind the task named `output`."""
    last = next(task for task in tasks if task.name == output)
    return (*tasks, loss_task(last)), (*edges, (output, LOSS_OP))
