"""Model variants as graph transformations with true costs: pruned, factored, shared, tied, sparse and quantized. No torch here.

P1 = P0 / eta: `compression_ratio` is eta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chinchilla_sim.graph.compress.low_rank import factor_low_rank
from chinchilla_sim.graph.compress.prune import prune
from chinchilla_sim.graph.compress.quantize import quantize
from chinchilla_sim.graph.compress.share import share_weights, tie_embeddings
from chinchilla_sim.graph.compress.sparse import thin
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.units import format_bytes


@dataclass(frozen=True, slots=True)
class Variant:
    """What is done to a model, in this order: share, tie, prune, low rank, sparsity, quantize."""

    share_weights: bool = False
    tie_embeddings: bool = False
    prune: float = 0.0
    low_rank: float = 0.0
    sparsity: float = 0.0
    quantize: str | None = None


AS_IT_IS = Variant()


def compress(graph: TaskGraph, variant: Variant) -> TaskGraph:
    """The variant of a model, with a note of what it saves; without any change the same graph."""
    small = share_weights(graph) if variant.share_weights else graph
    small = tie_embeddings(small) if variant.tie_embeddings else small
    small = thin(factor_low_rank(prune(small, variant.prune), variant.low_rank), variant.sparsity)
    small = quantize(small, variant.quantize) if variant.quantize else small
    if small is graph:
        return graph
    sizes = f"{format_bytes(graph.total_parameter_bytes)} to {format_bytes(small.total_parameter_bytes)}"
    return replace(small, notes=(*small.notes, f"compressed: parameters from {sizes}, {compression_ratio(graph, small):.3g} times smaller"))


def compression_ratio(before: TaskGraph, after: TaskGraph) -> float:
    """Bytes of the parameters before, divided by those after: eta in P1 = P0 / eta."""
    return before.total_parameter_bytes / after.total_parameter_bytes
