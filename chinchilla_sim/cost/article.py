"""The cost model of the article on the "Chinchilla model", with units, and what its worked case really says.

    C = sum C_i      computing capacity, flop/s           D = the set of dependency edges (i, j)
    B = sum B_i      bandwidth, bytes/s                   L = min L_ij    latency, s
    P1 = P0 / eta    parameters after compression         T = units of work, N = nodes
    C_avg = B_avg = T / N        eta_C = C_avg / C_0        eta_B = B_avg / B_0        eta_P = P1 / P0

What the article gets wrong, and what is returned here instead:

- It prints eta_C = 2.5 and eta_B = 25 for 4 nodes of 10 Tflop/s and 1 GB/s, T = 1e10. Both divide an amount of
  work by a rate, so they are seconds and not ratios, and both divide by the bare 10 and 1 and then drop a factor
  of 1e8 (the quotients are 2.5e9 / 1e13 and 2.5e9 / 1e9). Here eta_C is `work_s` = 0.25 ms and eta_B is `transfer_s` = 2.5 s.
- eta is P0 / P1 in one section and P1 / P0 in another. Here `parameter_ratio` = eta_P = P1 / P0 <= 1 and
  `compression` = eta = P0 / P1 >= 1.
- min L_ij is a lower bound: a synchronous step waits for the largest latency. Both are returned.
- T has no unit. That it counts flop once (for C_avg) and bytes once (for B_avg) is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArticleCase:
    """A distributed job in the article's terms; `edges` maps a dependency (i, j) to its latency in seconds."""

    node_flop_per_s: Sequence[float]
    node_bandwidth_bytes_per_s: Sequence[float]
    work: float
    parameter_count: float
    edges: Mapping[tuple[int, int], float]
    compression: float = 1.0


@dataclass(frozen=True, slots=True)
class ArticleAnswer:
    """The article's quantities with units; see the module's docstring for each name."""

    total_flop_per_s: float
    total_bandwidth_bytes_per_s: float
    smallest_latency_s: float
    largest_latency_s: float
    work_per_node: float
    work_s: float
    transfer_s: float
    parameters_after: float
    parameter_ratio: float


def evaluate_article(case: ArticleCase) -> ArticleAnswer:
    """The article's model of a job whose work is spread evenly; times are per node, of its slowest node.

    >>> case = ArticleCase([1e13] * 4, [1e9] * 4, 1e10, 1e8, {(0, 1): 1e-3, (1, 2): 1e-3, (2, 3): 1e-3})
    >>> answer = evaluate_article(case)
    >>> answer.work_s, answer.transfer_s, answer.parameter_ratio
    (0.00025, 2.5, 1.0)
    """
    share = case.work / len(case.node_flop_per_s)
    return ArticleAnswer(
        total_flop_per_s=sum(case.node_flop_per_s),
        total_bandwidth_bytes_per_s=sum(case.node_bandwidth_bytes_per_s),
        smallest_latency_s=min(case.edges.values(), default=0.0),
        largest_latency_s=max(case.edges.values(), default=0.0),
        work_per_node=share,
        work_s=share / min(case.node_flop_per_s),
        transfer_s=share / min(case.node_bandwidth_bytes_per_s),
        parameters_after=case.parameter_count / case.compression,
        parameter_ratio=1.0 / case.compression,
    )
