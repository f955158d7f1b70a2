"""One set of weights for all repeated blocks (ALBERT, Lan et al. 2020), and output layers tied to their embedding (Press & Wolf 2017).

Repeats are found by structure. Where a block may begin at several places (a norm in front of the first layer looks like the
norm at the end of each), the weights' names say where the model's own blocks begin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import takewhile

from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.repeats import Repeat, find_repeats, with_first_blocks
from chinchilla_sim.graph.task import WEIGHT_PREFIX, TaskGraph, Weight


def share_weights(graph: TaskGraph) -> TaskGraph:
    """The model whose repeated blocks all use the weights of the first; flop and activations stay. Buffers stay each its own."""
    stands_for: dict[str, str] = {}
    repeats = [with_first_blocks(graph, _aligned(graph, repeat)) for repeat in find_repeats(graph)]
    for repeat in repeats:
        stands_for |= _shared_by(graph, repeat)
    told = ", ".join(str(repeat) for repeat in repeats) or "no repeated blocks"
    return rebuild(graph, _Rename(graph, stands_for), f"shared: {len(stands_for)} weights stand for those of the first block ({told})")


def tie_embeddings(graph: TaskGraph) -> TaskGraph:
    """The model whose linear layers that are shaped like an embedding's table use that table as their weight."""
    tables = {_first_weight(task.operands): task.name for task in graph.tasks if task.op == "embedding"}
    shapes = {graph.weights[name].shape: name for name in reversed([name for name in tables if name])}
    stands_for = {}
    for task in graph.tasks:
        name = _first_weight(task.operands[1:2]) if task.op == "linear" else ""
        table = shapes.get(graph.weights[name].shape) if name else None
        if table and table != name:
            stands_for[name] = table
    return rebuild(graph, _Rename(graph, stands_for), f"tied: {len(stands_for)} output layers use the table of an embedding")


def _first_weight(operands: tuple[str, ...]) -> str:
    return operands[0].removeprefix(WEIGHT_PREFIX) if operands and operands[0].startswith(WEIGHT_PREFIX) else ""


def _aligned(graph: TaskGraph, repeat: Repeat) -> Repeat:
    """The repeat moved back by up to `slack` tasks, to where the weights of each block have the longest common name."""

    def common(candidate: Repeat) -> int:
        blocks = _blocks(graph, candidate)
        owners = Counter(name for block in blocks for name in block)
        columns = (zip(*(name.split(".") for name in block if owners[name] == 1), strict=False) for block in blocks)
        return sum(len(list(takewhile(lambda parts: len(set(parts)) == 1, block))) for block in columns)

    candidates = [Repeat(repeat.start + shift, repeat.length, repeat.count) for shift in range(repeat.slack + 1)]
    return max(candidates, key=lambda candidate: (common(candidate), -candidate.start))


def _blocks(graph: TaskGraph, repeat: Repeat) -> list[list[str]]:
    """Trained weights of each block in the order of use, each once."""
    tasks = graph.compute_tasks[repeat.start : repeat.end]
    rows = [tasks[first : first + repeat.length] for first in range(0, len(tasks), repeat.length)]
    return [list(dict.fromkeys(n for task in row for n in task.parameters if graph.weights[n].trained)) for row in rows]


def _shared_by(graph: TaskGraph, repeat: Repeat) -> dict[str, str]:
    first, *others = _blocks(graph, repeat)
    pairs = (pair for block in others if len(block) == len(first) for pair in zip(block, first, strict=True))
    return {name: source for name, source in pairs if name != source and graph.weights[name] == graph.weights[source]}


class _Rename(Change):
    def __init__(self, graph: TaskGraph, stands_for: Mapping[str, str]) -> None:
        self.graph, self.stands_for = graph, stands_for

    def weight(self, name: str, weight: Weight) -> tuple[str, Weight]:
        """The weight that stands for this one."""
        source = self.stands_for.get(name, name)
        return source, self.graph.weights[source]
