"""Magnitude pruning of single values (Han et al. 2015): of every matrix the share of least magnitude is zero.

Nothing computes faster by that: zeros are multiplied like other values, and lie in memory like them. What shrinks is the file, which
holds a bit for each value and the values that are not zero. In training the share rises with the step t of the first RAMP of all T steps
(Zhu & Gupta 2017):

    s(t) = sparsity (1 - (1 - t / (RAMP T))^3)
"""

from __future__ import annotations

from dataclasses import replace

from chinchilla_sim.graph.task import TaskGraph, Weight
from chinchilla_sim.units import format_bytes

RAMP = 0.5
"""Share of a run in which the share of zeros rises; in the rest the values that stay make up for those that went."""
BITS = 8


def thin(graph: TaskGraph, sparsity: float) -> TaskGraph:
    """The same model with a note of the zeros in it; `sparsity` 0 is the same graph."""
    if not sparsity:
        return graph
    size = format_bytes(stored_bytes(graph, sparsity))
    note = f"sparse: {sparsity:.0%} of the values of every matrix are zero; {size} in a file, as many bytes in memory as before, no faster"
    return replace(graph, notes=(*graph.notes, note))


def may_be_thinned(weight: Weight) -> bool:
    """Matrices, tables and convolutions; biases and norms stay."""
    return len(weight.shape) > 1 and not weight.buffer


def stored_bytes(graph: TaskGraph, sparsity: float) -> float:
    """Bytes of all parameters in a file: of a sparse matrix a bit for each value, and those that are not zero."""
    weights = [weight for weight in graph.weights.values() if not weight.buffer]
    if not sparsity:
        return sum(weight.bytes for weight in weights)
    thinned = (weight.bytes * (1 - sparsity) + weight.value_count / BITS if may_be_thinned(weight) else weight.bytes for weight in weights)
    return sum(thinned)


def sparsity_at(step: int, total_steps: int, sparsity: float) -> float:
    """Share of zeros behind a step that counts from 1.

    >>> [round(sparsity_at(step, 80, 0.8), 2) for step in (0, 20, 40, 80)]
    [0.0, 0.7, 0.8, 0.8]
    """
    left = max(0.0, 1.0 - step / max(1.0, RAMP * total_steps))
    return sparsity * (1.0 - left**3)
