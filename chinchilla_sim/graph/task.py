"""Task and TaskGraph: the operators of a model, what each costs in flop and bytes, and who feeds whom.

All amounts of a graph are for one batch of `batch_size` samples. Flop and tensor bytes scale with the
batch, parameter bytes do not; `cost/` turns amounts into seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx

GRAPH_FORMAT = "chinchilla-task-graph"
GRAPH_VERSION = 1
INPUT_OP = "input"
LOSS_OP = "loss"


@dataclass(frozen=True, slots=True)
class Task:
    """One operator of the model, for one batch of the graph's `batch_size`.

    `read_bytes` (with parameters) and `written_bytes` are of the forward pass. The backward pass makes
    `input_gradient_flop` (0 where no input needs a gradient) and `weight_gradient_flop`. `parameters` are
    names into `TaskGraph.parameter_bytes`; `saved` names the tasks whose outputs this one keeps for its
    backward pass. `launch_count` is the number of kernels that the forward pass starts (0 for views).
    """

    name: str
    op: str
    forward_flop: float = 0.0
    input_gradient_flop: float = 0.0
    weight_gradient_flop: float = 0.0
    output_bytes: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    backward_read_bytes: float = 0.0
    backward_written_bytes: float = 0.0
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    needs_gradient: bool = True
    launch_count: int = 1

    @property
    def backward_flop(self) -> float:
        """Flop of the whole backward pass: one product per operand that needs a gradient."""
        return self.input_gradient_flop + self.weight_gradient_flop


@dataclass(frozen=True)
class TaskGraph:
    """Tasks with their dependencies, in one fixed topological order.

    `consumers[name]` are the tasks that read the output of `name`; `tasks` is in topological order with
    the model's inputs (op `input`, no cost) first.
    """

    name: str
    batch_size: int
    tasks: tuple[Task, ...]
    edges: tuple[tuple[str, str], ...]
    parameter_bytes: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

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
    def total_parameter_bytes(self) -> float:
        """Bytes of all parameters; one that several tasks share counts once."""
        return sum(self.parameter_bytes.values())

    def parameter_bytes_of(self, tasks: Iterable[Task]) -> float:
        """Bytes of the parameters that these tasks use; a shared one counts once."""
        return sum(self.parameter_bytes[name] for name in dict.fromkeys(name for task in tasks for name in task.parameters))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, read back by `from_dict` to an equal graph."""
        return {
            "format": GRAPH_FORMAT,
            "version": GRAPH_VERSION,
            "name": self.name,
            "batch_size": self.batch_size,
            "source": self.source,
            "parameter_bytes": dict(self.parameter_bytes),
            "tasks": [_without_defaults(task) for task in self.tasks],
            "edges": [list(edge) for edge in self.edges],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TaskGraph:
        """Inverse of `to_dict`; the caller has checked the shape (`graph.importers`)."""
        rows: list[dict[str, Any]] = [{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()} for row in data["tasks"]]
        return TaskGraph(
            name=data["name"],
            batch_size=data["batch_size"],
            tasks=tuple(Task(**row) for row in rows),
            edges=tuple((producer, consumer) for producer, consumer in data["edges"]),
            parameter_bytes=dict(data["parameter_bytes"]),
            source=data.get("source", ""),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what is computed (not over where it came from)."""
        content = {key: value for key, value in self.to_dict().items() if key not in ("source", "name")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_defaults(task: Task) -> dict[str, Any]:
    fresh = asdict(Task(name="", op=""))
    return {key: value for key, value in asdict(task).items() if key in ("name", "op") or value != fresh[key]}


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
